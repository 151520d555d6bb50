"""Detectors: what torchvision has around backbone and head goes on working."""

import pytest
import torch
from torch import nn
from torchvision.models.detection import FCOS, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator

from brevitas_multiquant import calibrate, multiquantize
from brevitas_multiquant.errors import UnsupportedModelError
from brevitas_multiquant.methods.detection import DensePart, with_network
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


def test_models_that_are_no_detectors():
    with pytest.raises(UnsupportedModelError, match="of two stages convert the parts"):
        DensePart(TinyNet())
