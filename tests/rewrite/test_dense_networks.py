"""Networks for dense prediction convert as they are, and pass everything that classifiers pass."""

import numpy as np
import pytest
import torch

from brevitas_multiquant import (
    calibrate,
    extract_subnet,
    load_packed,
    multiquantize,
    save_packed,
)
from brevitas_multiquant.core.float_model import ModelSource
from brevitas_multiquant.cost import cost
from brevitas_multiquant.export import export_onnx, export_qonnx
from brevitas_multiquant.quant.layers import TRANSPOSED, WEIGHTED, CodeLayer
from tests.dense import other_maps, segmentation, two_modes
from tests.dense.segmentation import SHAPE

# network -> layers that stay float: the stem's and those of the head
NETWORKS = {
    segmentation.UNet: 2,
    segmentation.TransposedUNet: 2,
    segmentation.ENet: 2,
    segmentation.FastSCNN: 2,
    segmentation.ERFNet: 2,
    segmentation.LinkNet: 2,
    segmentation.FPN: 2,
    segmentation.HRNet: 2,
    segmentation.PSPNet: 3,
    segmentation.SegNet: 2,
    segmentation.BiSeNet: 4,
    segmentation.DeepLabV3Plus: 2,
    other_maps.RefineNet: 2,
    other_maps.ICNet: 5,
    other_maps.FCN8s: 3,
    other_maps.DnCNN: 2,
    other_maps.EDSR: 2,
    other_maps.Hourglass: 2,
    other_maps.CenterNet: 4,
    other_maps.NestedUNet: 3,
    two_modes.YOLO: 3,
    two_modes.OnePlace: 3,
    two_modes.Tasks: 4,
}


def layers_of(*parts):
    return [m for part in parts for m in part.modules() if isinstance(m, WEIGHTED)]


def equal(net, one, other):
    pairs = zip(net.structure.tensors(one), net.structure.tensors(other), strict=True)
    return all(torch.equal(ours, theirs) for ours, theirs in pairs)


@pytest.mark.parametrize("kind", NETWORKS, ids=lambda kind: kind.__name__)
def test_converts_and_is_exact(kind, tmp_path):
    torch.manual_seed(0)
    model, images = kind(), torch.randn(2, *SHAPE[1:])
    source = ModelSource("own", kind.__name__)
    net = multiquantize(model, [2, 4], input_shape=SHAPE, source=source)
    assert len(layers_of(net.stem, net.head)) == NETWORKS[kind]
    assert all(isinstance(layer, CodeLayer) for layer in layers_of(*net.branches))
    assert len(layers_of(net.stem, net.branches[0], net.head)) == len(layers_of(model))
    calibrate(net, [images])
    save_packed(net.eval(), tmp_path / "net.safetensors")
    loaded = load_packed(tmp_path / "net.safetensors", model=kind())
    outputs = {}
    for bits in net.bits:
        with torch.no_grad(), net.at_bits(bits), loaded.at_bits(bits):
            outputs[bits] = net(images)
            assert equal(net, extract_subnet(net, bits)(images), outputs[bits])
            assert equal(net, loaded(images), outputs[bits])
    assert not equal(net, outputs[2], outputs[4])
    costs = cost(net)
    assert costs[2].bitops < costs[4].bitops


@pytest.mark.parametrize("kind", NETWORKS, ids=lambda kind: kind.__name__)
def test_its_qonnx_file_is_verified(kind, tmp_path):
    torch.manual_seed(0)
    net = multiquantize(kind(), [2], input_shape=SHAPE, check=False)
    calibrate(net, [torch.randn(2, *SHAPE[1:])])
    export_qonnx(net.eval(), tmp_path, allow_ties=True)
    names = net.structure.names
    if len(names) > 1:
        expected = np.load(tmp_path / "expected_output_2b.npz")
        assert tuple(expected) == names


@pytest.mark.parametrize("kind", [segmentation.FastSCNN, segmentation.PSPNet, other_maps.DnCNN])
def test_images_of_another_size(kind):
    """The head reads the image's size of the image itself, which is handed on."""
    net = multiquantize(kind(), [2, 4], input_shape=SHAPE, check=False)
    calibrate(net, [torch.randn(2, *SHAPE[1:])])
    larger = torch.randn(1, 3, 48, 40)
    with torch.no_grad():
        output = net.eval()(larger)
        plain = extract_subnet(net, 4)(larger)
    assert {t.shape[-2:] for t in net.structure.tensors(output)} == {(48, 40)}
    assert equal(net, output, plain)


def test_half_of_a_transposed_convolution():
    net = multiquantize(segmentation.TransposedUNet(), [2, 3, 4], input_shape=SHAPE)
    images = torch.randn(2, *SHAPE[1:])
    calibrate(net, [images])
    half = [layer for layer in net.halves.modules() if isinstance(layer, TRANSPOSED)]
    whole = [layer for layer in net.branches[0].modules() if isinstance(layer, TRANSPOSED)]
    assert all(a.weight.numel() < b.weight.numel() for a, b in zip(half, whole, strict=True))
    with torch.no_grad(), net.eval().at_bits(3):
        assert torch.equal(extract_subnet(net, 3)(images), net(images))
    costs = cost(net)
    assert costs[2].bitops < costs[3].bitops < costs[4].bitops


@pytest.mark.parametrize("kind", [two_modes.YOLO, two_modes.OnePlace])
def test_what_a_model_returns_less_while_it_trains_is_a_part_of_what_the_network_returns(kind):
    torch.manual_seed(0)
    model, images = kind(), torch.randn(2, *SHAPE[1:])
    net = multiquantize(model, [2, 4], input_shape=SHAPE)
    (note,) = (note for note in net.plan.notes if "a part of its output" in note)
    assert "(output[1])" in note
    with torch.no_grad(), net.train().floating(), net.at_bits(2):
        found, expected = net(images)[1], model.train()(images)
    assert all(map(torch.equal, found, expected))


def test_an_output_of_one_number_for_each_image_leaves_as_onnx(tmp_path):
    net = multiquantize(two_modes.Tasks(), [2], input_shape=SHAPE, check=False)
    calibrate(net, [torch.randn(2, *SHAPE[1:])])
    (path,) = export_onnx(net.eval(), tmp_path, images=torch.randn(3, *SHAPE[1:])).values()
    assert path.is_file()


class TwoHeadsOfTheirOwn(torch.nn.Module):
    """Each output calls the encoder again."""

    def __init__(self):
        super().__init__()
        self.stem, self.body = segmentation.cbr(3, 8), segmentation.cbr(8, 8)
        self.classes, self.depth = torch.nn.Conv2d(8, 5, 1), torch.nn.Conv2d(8, 1, 1)

    def encode(self, x):
        return self.body(self.stem(x))

    def forward(self, x):
        return {"classes": self.classes(self.encode(x)), "depth": self.depth(self.encode(x))}


@pytest.mark.parametrize("export", [export_qonnx, export_onnx])
def test_an_exporter_makes_one_of_nodes_that_compute_the_same(export, tmp_path):
    torch.manual_seed(0)
    net = multiquantize(TwoHeadsOfTheirOwn(), [2, 4], input_shape=SHAPE)
    assert len(net.plan.stem_ends) == 2
    calibrate(net, [torch.randn(2, *SHAPE[1:])])
    assert set(export(net.eval(), tmp_path)) == {2, 4}


class PixelOfChannelsLast(torch.nn.Module):
    """A norm over channels leaves them last in memory; a map of one pixel is enlarged again."""

    def __init__(self):
        super().__init__()
        self.stem, self.norm = segmentation.cbr(3, 32), torch.nn.LayerNorm(32)
        self.pool, self.global_ = torch.nn.AdaptiveAvgPool2d(1), torch.nn.Conv2d(32, 64, 1)
        self.classes = torch.nn.Conv2d(64, 5, 3, padding=1)

    def forward(self, x):
        x = self.norm(self.stem(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        x = self.global_(self.pool(x))
        return self.classes(torch.nn.functional.interpolate(x, size=(32, 32), mode="bilinear"))


def test_the_plain_network_keeps_memory_formats():
    """A float head adds up in the order of its input's format: another one has other bits."""
    torch.manual_seed(0)
    net = multiquantize(PixelOfChannelsLast(), [2, 4], input_shape=SHAPE)
    images = torch.randn(2, *SHAPE[1:])
    calibrate(net, [images])
    for bits in net.bits:
        with torch.no_grad(), net.eval().at_bits(bits):
            assert torch.equal(extract_subnet(net, bits)(images), net(images))
