"""Detectors: what torchvision has around backbone and head goes on working."""

from contextlib import ExitStack

import pytest
import torch
from torch import nn
from torchvision.models.detection import FCOS, KeypointRCNN, MaskRCNN, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor
from torchvision.models.detection.keypoint_rcnn import KeypointRCNNHeads, KeypointRCNNPredictor
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.ops import MultiScaleRoIAlign

from brevitas_multiquant import InPlaceDistillation, calibrate, multiquantize
from brevitas_multiquant.errors import CalibrationError, ConfigError, UnsupportedModelError
from brevitas_multiquant.methods.detection import DensePart, with_network
from brevitas_multiquant.methods.region_heads import (
    region_features,
    region_head,
    with_region_head,
)
from brevitas_multiquant.training.measure import measure
from tests.tiny import TinyNet


class Backbone(nn.Module):
    """Two levels."""

    def __init__(self, channels):
        super().__init__()
        self.out_channels = n = channels
        self.low = nn.Sequential(nn.Conv2d(3, n, 3, 4, 1), nn.BatchNorm2d(n), nn.ReLU())
        self.high = nn.Sequential(nn.Conv2d(n, n, 3, 2, 1), nn.BatchNorm2d(n), nn.ReLU())

    def forward(self, x):
        low = self.low(x)
        return {"0": low, "1": self.high(low)}


def detector_of(kind):
    sizes = {RetinaNet: ((16, 24), (32, 48)), FCOS: ((16,), (32,))}[kind]
    anchors = AnchorGenerator(sizes, ((1.0,),) * 2)
    backbone = Backbone({RetinaNet: 8, FCOS: 32}[kind])  # norms of 32 groups
    return kind(backbone, 3, min_size=64, max_size=64, anchor_generator=anchors)


@pytest.mark.parametrize("kind", [RetinaNet, FCOS])
def test_a_detector_detects_at_every_bit_width(kind):
    torch.manual_seed(0)
    float_one = detector_of(kind)
    net = multiquantize(DensePart(float_one), [2, 4], input_shape=(1, 3, 64, 64))
    assert {"cls_logits", "bbox_regression"} <= set(net.structure.names)
    detector, images = with_network(float_one, net), [torch.rand(3, 60, 50), torch.rand(3, 40, 64)]
    assert {id(p) for p in detector.parameters()} == {id(p) for p in net.parameters()}
    with torch.no_grad(), net.floating(), net.at_bits(2):
        expected, found = float_one.eval()(images), detector.eval()(images)
    for ours, theirs in zip(found, expected, strict=True):
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    calibrate(net.train(), [torch.rand(2, 3, 64, 64)])
    targets = [{"boxes": torch.tensor([[4.0, 4.0, 30.0, 30.0]]), "labels": torch.tensor([1])}] * 2
    losses = {}
    for bits in net.bits:
        with net.at_bits(bits):
            losses[bits] = sum(detector.train()(images, targets).values())
        losses[bits].backward()
    assert losses[2] != losses[4] and all(p.grad is not None for p in net.head.parameters())


def test_a_detector_learns_from_its_largest_bit_width():
    torch.manual_seed(0)
    net = multiquantize(DensePart(detector_of(FCOS)), [2, 4, 8], input_shape=(1, 3, 64, 64))
    images = torch.rand(2, 3, 64, 64)
    calibrate(net, [images])

    def loss(outputs, targets):
        return sum((part - targets).square().mean() for part in outputs.values())

    def distance(student, teacher):
        return sum((student[key] - teacher[key]).square().mean() for key in student)

    task = InPlaceDistillation(net.train(), criterion=loss, distill_criterion=distance)
    result = task.step(images, torch.tensor(0.5))
    assert set(result["kd"]) == {2, 4} and all(value > 0 for value in result["kd"].values())
    assert all(torch.isfinite(p.grad).all() for p in net.parameters() if p.grad is not None)
    assert all(p.grad is not None for p in net.head.parameters())


def test_models_that_are_no_detectors():
    with pytest.raises(UnsupportedModelError, match="expected a detector of torchvision"):
        DensePart(TinyNet())
    with pytest.raises(UnsupportedModelError, match="with a mask head, got one without"):
        region_head(detector_of(FCOS), "mask")
    with pytest.raises(ConfigError, match=r"expected one of .*, got 'masks'"):
        region_head(two_stages_of("mask"), "masks")


CHANNELS, WIDTH = 8, 16


def two_stages_of(kind):
    """Mask or Keypoint R-CNN as torchvision builds it, tiny."""
    build = {"mask": MaskRCNN, "keypoint": KeypointRCNN}[kind]
    heads = {
        "mask": (MaskRCNNHeads(CHANNELS, (8,), 1), MaskRCNNPredictor(8, 8, 3)),
        "keypoint": (KeypointRCNNHeads(CHANNELS, (8, 8)), KeypointRCNNPredictor(8, 4)),
    }
    head, predictor = heads[kind]
    own = {f"{kind}_head": head, f"{kind}_predictor": predictor}
    own[f"{kind}_roi_pool"] = MultiScaleRoIAlign(["0", "1"], 6, 2)
    return build(
        Backbone(CHANNELS),
        **(own | {"min_size": 64, "max_size": 64}),
        rpn_anchor_generator=AnchorGenerator(((16,), (32,)), ((1.0,),) * 2),
        rpn_post_nms_top_n_test=20,
        box_roi_pool=MultiScaleRoIAlign(["0", "1"], 3, 2),
        box_head=nn.Sequential(nn.Flatten(), nn.Linear(9 * CHANNELS, WIDTH), nn.ReLU()),
        box_predictor=FastRCNNPredictor(WIDTH, 3),
        box_score_thresh=0.0,
    )


@pytest.mark.parametrize("kind", ["mask", "keypoint"])
def test_two_stages_at_every_bit_width(kind):
    """Backbone, proposals and the heads of regions: every layer is in a network."""
    torch.manual_seed(0)
    float_one = two_stages_of(kind)
    images = [torch.rand(3, 60, 50), torch.rand(3, 40, 64)]
    nets = {None: multiquantize(DensePart(float_one), [2, 4], input_shape=(1, 3, 64, 64))}
    detector = with_network(float_one, nets[None])
    for part, size in (("box", 3), (kind, 6)):
        shape = (1, CHANNELS, size, size)
        head = region_head(float_one, part)
        nets[part] = multiquantize(head, [2, 4], input_shape=shape, stem="none")
        detector = with_region_head(detector, part, nets[part])
    networks = {id(p) for net in nets.values() for p in net.parameters()}
    assert {id(p) for p in detector.parameters()} == networks
    with torch.no_grad(), ExitStack() as stack:
        for net in nets.values():
            stack.enter_context(net.floating())
            stack.enter_context(net.at_bits(2))
        expected, found = float_one.eval()(images), detector.eval()(images)
    for ours, theirs in zip(found, expected, strict=True):
        assert len(theirs["boxes"]) and ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    _trains(float_one.train(), detector.train(), nets, kind, images)


def _trains(float_one, detector, nets, kind, images):
    targets = [
        {
            "boxes": torch.tensor([[4.0, 4.0, 30.0, 30.0]]),
            "labels": torch.tensor([1]),
            "masks": torch.ones(1, *image.shape[1:], dtype=torch.uint8),
            "keypoints": torch.tensor([[[8.0, 8.0, 1.0]] * 4]),
        }
        for image in images
    ]
    calibrate(nets[None], [torch.rand(2, 3, 64, 64)])
    for part in ("box", kind):
        calibrate(nets[part], [region_features(float_one, part, images, targets)])
    losses = {}
    for bits in (2, 4):
        for net in nets.values():
            net.set_active_bits(bits)
        losses[bits] = sum(detector(images, targets).values())
        losses[bits].backward()
    assert losses[2] != losses[4]
    assert all(torch.isfinite(p.grad).all() for p in nets[kind].parameters())


class Boxes:
    """How many boxes there are, and the sum of their scores."""

    def reset(self):
        self.count, self.score = 0, torch.tensor(0.0)

    def update(self, found, targets):
        assert len(found) == len(targets)
        self.count += sum(len(one["boxes"]) for one in found)
        self.score += sum(one["scores"].sum() for one in found)

    def compute(self):
        return self.count, self.score


def test_a_detector_is_measured_at_every_bit_width():
    torch.manual_seed(0)
    float_one = two_stages_of("mask")
    net = multiquantize(DensePart(float_one), [2, 4, 8], input_shape=(1, 3, 64, 64))
    head = region_head(float_one, "box")
    box = multiquantize(head, [2, 8], input_shape=(1, CHANNELS, 3, 3), stem="none")
    detector = with_region_head(with_network(float_one, net), "box", box).train()
    calibrate(net, [torch.rand(2, 3, 64, 64)])
    calibrate(box, [torch.rand(4, CHANNELS, 3, 3)])
    images = [torch.rand(3, 60, 50), torch.rand(3, 40, 64)]
    found = measure(detector, [(images, [{}, {}])], Boxes())
    assert detector.training and list(found) == [2, 8]  # the bits of both
    assert found[2][0] > 0 and found[2][1] != found[8][1]
    with net.at_bits(8), box.at_bits(8), torch.no_grad():
        scores = [one["scores"].sum() for one in detector.eval()(images)]
    assert found[8][1] == sum(scores)


def test_images_without_regions():
    detector = two_stages_of("mask").eval()
    detector.roi_heads.score_thresh = 1.0
    with pytest.raises(CalibrationError, match="got none: pass targets"):
        region_features(detector, "mask", [torch.rand(3, 64, 64)])
    head = region_head(detector, "mask")
    net = multiquantize(head, [2], input_shape=(1, CHANNELS, 6, 6), stem="none")
    calibrate(net, [torch.rand(2, CHANNELS, 6, 6)])
    (found,) = with_region_head(detector, "mask", net).eval()([torch.rand(3, 64, 64)])
    assert found["masks"].shape == (0, 1, 64, 64)
