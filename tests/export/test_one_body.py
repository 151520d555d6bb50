"""Subnets and exports of networks whose weights follow the bit-width, or have their own."""

import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from brevitas_multiquant import Assignment, calibrate, extract_subnet, multiquantize
from brevitas_multiquant.core.grids import FAMILIES
from brevitas_multiquant.core.power_of_two import integer_range
from brevitas_multiquant.export import check_finn, export_finn, export_onnx, export_qonnx
from brevitas_multiquant.export.finn.check import branch_names
from brevitas_multiquant.export.finn.integer_graph import Convolution, Thresholds
from brevitas_multiquant.export.finn.lower import lower
from brevitas_multiquant.nn.merge import OnlyOutput
from brevitas_multiquant.profiles.finn.modules import BranchMean
from brevitas_multiquant.quant.layers import CodeLayer
from tests.one_body import MIXED, ROWS, network, sample
from tests.tiny import IMAGE


def layers_at(net, setting):
    """The layers of a view, which look at its dials."""
    view = net.view(setting)
    return view, [module for module in view.modules() if isinstance(module, CodeLayer)]


@pytest.mark.parametrize("profile", ["paper", "finn"])
@pytest.mark.parametrize("row", ROWS)
def test_subnets_are_equal_to_the_bit(row, profile):
    net = network(row, profile)
    for bits in net.bits:
        subnet = extract_subnet(net, bits)
        with torch.no_grad(), net.at_bits(bits):
            assert torch.equal(subnet(sample()), net(sample()))
        _, layers = layers_at(net, bits)
        plain = [m for m in subnet.branches[0].modules() if hasattr(m, "weight_quant")]
        for conv, layer in zip(plain, layers, strict=True):
            quantized = conv.quant_weight()
            assert torch.equal(quantized.value, layer.quant_weight())
            assert quantized.scale == 1 and not quantized.zero_point
            assert quantized.bit_width == layer.weight_format.integer_bits
            assert conv.weight_quant.is_narrow_range == layer.weight_format.is_narrow


@pytest.mark.parametrize("row", ["adabits centered", "adabits modified", "adabits original"])
def test_subnets_of_assignments(row):
    """Weights and activations of each layer at bits of their own, at run time."""
    net = network(row)
    low, high = net.bits[0], net.bits[-1]
    for one in (
        Assignment(high, {"conv1": (low, high), "conv2": (high, low)}),
        Assignment(low, {"conv1": (high, low)}),
    ):
        subnet = extract_subnet(net, one)
        with torch.no_grad(), net.at_bits(one):
            assert torch.equal(subnet(sample()), net(sample()))
        _, layers = layers_at(net, one)
        sites = [dict(one.items()).get(site) for site in ("conv1", "conv2", "conv1")]
        grids = [layer.weight_format.place_bits for layer in layers]
        assert grids == [site.weight if site else one.bits for site in sites]


def quantized_weights(path):
    """(bits, narrow, integers) of each weight of a QONNX file that is quantized there."""
    graph = onnx.load(path).graph
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Quant" and node.input[0] in constants:
            narrow = next(a.i for a in node.attribute if a.name == "narrow")
            yield int(constants[node.input[3]]), bool(narrow), constants[node.input[0]]


@pytest.mark.parametrize("row", ROWS)
def test_qonnx_has_weights_of_their_own_bits(row, tmp_path):
    """The export itself compares codes and logits with torch."""
    net = network(row)
    for bits, path in export_qonnx(net, tmp_path).items():
        _, layers = layers_at(net, bits)
        found = {integers.tobytes(): (b, n) for b, n, integers in quantized_weights(path)}
        assert len(found) == len(layers)
        for layer in layers:
            grid = layer.weight_format
            integers = layer.quant_weight().detach().numpy()
            assert found[integers.tobytes()] == (grid.integer_bits, grid.is_narrow)
            lowest, highest = integer_range(grid.integer_bits, signed=True)
            assert lowest + grid.is_narrow <= integers.min() and integers.max() <= highest


@pytest.mark.parametrize("profile", ["paper", "finn"])
@pytest.mark.parametrize("row", ["individual, 1 bit", "any_precision"])
def test_codes_of_one_bit_are_0_and_1_in_files(row, profile, tmp_path):
    """Brevitas would write quantizers to -1 and 1, and refuses them in plain ONNX."""
    net = network(row, profile)
    qonnx = onnx.load(export_qonnx(net, tmp_path, bits=[1])[1]).graph
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in qonnx.initializer}
    quantizers = [node for node in qonnx.node if node.op_type == "Quant"]
    assert not [node for node in qonnx.node if node.op_type == "BipolarQuant"]
    binary = [node for node in quantizers if constants[node.input[3]] == 1]
    assert len(binary) == len(net.sites)
    for node in binary:
        facts = {one.name: one.i for one in node.attribute if one.name in ("signed", "narrow")}
        assert facts == {"signed": 0, "narrow": 0} and constants[node.input[2]] == 0
    assert export_onnx(net, tmp_path / "plain", bits=[1])[1].exists()  # compared with torch


@pytest.mark.parametrize("row", ROWS)
def test_onnx_of_every_bit_width(row, tmp_path):
    """Where integers have 9 bits, they are whole numbers in fp32; else int8."""
    net = network(row)
    for bits, path in export_onnx(net, tmp_path).items():
        _, layers = layers_at(net, bits)
        graph = onnx.load(path).graph
        arrays = [numpy_helper.to_array(tensor) for tensor in graph.initializer]
        arrays += [
            numpy_helper.to_array(attribute.t)
            for node in graph.node
            for attribute in node.attribute
            if node.op_type == "Constant" and attribute.name == "value"
        ]
        for layer in layers:
            integers = layer.quant_weight().detach().numpy()
            held = next(a for a in arrays if a.shape == integers.shape and (a == integers).all())
            wide = layer.weight_format.integer_bits > 8
            assert held.dtype == ("float32" if wide else "int8")


@pytest.mark.parametrize("row", ROWS)
def test_the_finn_profile(row, tmp_path):
    """One body: nothing is added at the end, and nothing is quantized for it."""
    net = network(row, "finn")
    assert isinstance(net.merge, OnlyOutput)
    assert not any(isinstance(module, BranchMean) for module in net.modules())
    assert check_finn(net) == []
    assert sorted(export_finn(net, tmp_path, estimate=False)) == list(net.bits)
    for bits in net.bits:
        graph = lower(extract_subnet(net, bits), branch_names(net, bits), IMAGE)
        assert not [layer for layer in graph.layers if layer.where.startswith("merge")]
        ends = [layer.where for layer in graph.layers if isinstance(layer, Thresholds)][-2:]
        assert ends == ["head.average_quants.pool", "head.input_quants.fc"]
        _, layers = layers_at(net, bits)
        body = [
            layer
            for layer in graph.layers
            if isinstance(layer, Convolution) and layer.where.startswith("branches.0")
        ]
        formats = sorted(layer.weight_format.integer_bits for layer in layers)
        assert sorted(layer.weight_bits for layer in body) == formats


def test_an_assignment_reaches_hardware():
    net = network("individual, assignment", "finn")
    graph = lower(extract_subnet(net, 4), branch_names(net, 4), IMAGE)
    found = {
        layer.where: layer.weight_bits for layer in graph.layers if isinstance(layer, Convolution)
    }
    odd = FAMILIES["odd"]
    for site, bits in {**MIXED, "shortcut": MIXED["conv1"]}.items():
        assert found[f"branches.0.{site}"] == odd(bits.weight).integer_bits
    codes = {layer.where: layer.bits for layer in graph.layers if isinstance(layer, Thresholds)}
    assert codes["stem.first_quant"] == 4 and codes["branches.0.input_quants.conv2"] == 5


def test_sums_that_pass_what_fp32_holds(tmp_path):
    """4,608 products of 8 bits on either side; a norm puts the thresholds of one channel there."""
    norm = nn.BatchNorm2d(4)
    norm.running_mean[0] = 290.0
    model = nn.Sequential(
        *(nn.Conv2d(3, 512, 1), nn.ReLU(), nn.Conv2d(512, 4, 3, bias=False), norm, nn.ReLU()),
        *(nn.Flatten(), nn.Linear(4, 5)),
    )
    images = torch.rand(4, 3, 3, 3)
    net = multiquantize(
        model, [8], method="individual", profile="finn", input_shape=(1, 3, 3, 3), check=False
    )
    calibrate(net, [images])
    subnet = extract_subnet(net.eval(), 8)
    assert subnet.inexact == ("2",)
    graph = lower(subnet, ["branches.0"], images.shape)
    (table,) = [t.table for t in graph.layers if isinstance(t, Thresholds) and len(t.table) == 4]
    assert table[0, -1] > 2**24 and table.dtype == torch.float32
    project = export_finn(net, tmp_path, images=images, estimate=False)[8]
    assert torch.equal(graph.logits(images), subnet(images))
    assert "`branches.0.2`: sums of up to 4" in (project / "README.md").read_text()
