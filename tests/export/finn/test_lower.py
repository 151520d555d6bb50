"""The network of integers against torch, to the bit; and what cannot become one."""

import pytest
import torch
from torch import nn

from brevitas_multiquant import calibrate, extract_subnet, multiquantize
from brevitas_multiquant.core.grids import WEIGHT_FORMATS
from brevitas_multiquant.errors import FinnMappingError
from brevitas_multiquant.export.finn import check_finn
from brevitas_multiquant.export.finn.check import branch_names
from brevitas_multiquant.export.finn.integer_graph import (
    ChannelSlice,
    Convolution,
    Subtraction,
    Thresholds,
)
from brevitas_multiquant.export.finn.lower import lower
from tests.export.finn.nets import NAMES, build, images_for
from tests.tiny import IMAGE, TinyNet

ODD = (3, 5, 6)


def lowered(net, bits):
    subnet = extract_subnet(net, bits)
    return subnet, lower(subnet, branch_names(net, bits), net.input_shape)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("bits", [2, 6])
def test_logits_are_those_of_torch_to_the_bit(name, bits):
    subnet, graph = lowered(build(name), bits)
    images = images_for(name)
    with torch.no_grad():
        assert torch.equal(graph.logits(images), subnet(images))


@pytest.mark.parametrize("name", NAMES)
def test_half_branches_to_the_bit(name):
    net = build(name, bits=ODD)
    images = images_for(name)
    for bits in (3, 5):
        subnet, graph = lowered(net, bits)
        (cut,) = (layer for layer in graph.layers if isinstance(layer, ChannelSlice))
        half = net.selection[bits][-1]
        assert cut.where == f"branches.{half}.narrow"
        assert cut.output.shape[0] < cut.inputs[0].shape[0]
        with torch.no_grad():
            assert torch.equal(graph.logits(images), subnet(images))


def test_weights_of_a_half_branch_are_the_first_of_the_whole():
    net = build("residual", bits=(2, 3, 4), negative=False)
    half, whole = (
        {
            layer.where: layer.weight
            for layer in lowered(net, bits)[1].layers
            if isinstance(layer, Convolution) and layer.where.startswith("branches.1.")
        }
        for bits in (3, 4)
    )
    assert half.keys() == whole.keys()
    for where, weight in half.items():
        outputs, inputs = weight.shape[:2]
        assert torch.equal(weight, whole[where][:outputs, :inputs]), where
    assert sum(w.numel() for w in half.values()) < sum(w.numel() for w in whole.values())


@pytest.mark.parametrize("bits", [2, 4, 6, 8])
def test_every_bit_width_and_the_sum_of_branches(bits):
    subnet, graph = lowered(build("residual", merge="sum"), bits)
    images = images_for("residual")
    with torch.no_grad():
        assert torch.equal(graph.logits(images), subnet(images))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("candidates", "bits"), [((2, 4, 6, 8), 4), (ODD, 5)])
def test_every_value_is_an_integer_within_its_streams_range(name, candidates, bits):
    _, graph = lowered(build(name, bits=candidates), bits)
    values = {graph.input.name: graph.host.codes(images_for(name)).double()}
    for layer in graph.layers:
        output = layer.run(*(values[stream.name] for stream in layer.inputs))
        assert torch.equal(output, output.round())
        assert layer.output.lowest <= output.min() and output.max() <= layer.output.highest
        assert tuple(output.shape[1:]) == layer.output.shape
        values[layer.output.name] = output


def test_weights_are_odd_codes_in_branches_and_eight_bits_at_the_edges():
    _, graph = lowered(build("residual"), 4)
    for layer in graph.layers:
        if isinstance(layer, Convolution):
            if layer.where.startswith("branches."):
                assert layer.weight_datatype == "INT3"
                assert set(layer.weight.unique().tolist()) <= {-3.0, -1.0, 1.0, 3.0}
            else:
                assert layer.weight_datatype == "INT8"
                assert torch.equal(layer.weight, layer.weight.round().clamp(-127, 127))


@pytest.mark.parametrize("weights", WEIGHT_FORMATS)
@pytest.mark.parametrize("name", ["residual", "bottleneck"])
def test_every_weight_format_is_exact_in_its_own_type(name, weights):
    """With positive norm scales no weight is negated."""
    subnet, graph = lowered(build(name, bits=(2, 4), weights=weights, negative=False), 4)
    images = images_for(name)
    with torch.no_grad():
        assert torch.equal(graph.logits(images), subnet(images))
    layers = [layer for layer in graph.layers if isinstance(layer, Convolution)]
    inner = [layer for layer in layers if layer.where.startswith("branches.")]
    form = WEIGHT_FORMATS[weights]
    assert {layer.weight_datatype for layer in inner} == {form.datatype}
    integers = torch.cat([layer.weight.flatten() for layer in inner]).unique()
    assert set(integers.tolist()) <= set(form.integers)
    assert not any(layer.widened for layer in layers)


@pytest.mark.parametrize("weights", WEIGHT_FORMATS)
def test_negated_weights_stay_inside_their_type(weights):
    """Norm scales of both signs: -2 of int2, negated, is 2, and the layer says so."""
    net = build("residual", bits=(2, 4), weights=weights)
    subnet, graph = lowered(net, 4)
    images = images_for("residual")
    with torch.no_grad():
        assert torch.equal(graph.logits(images), subnet(images))
    form = WEIGHT_FORMATS[weights]
    modules = dict(net.named_modules())
    widened = 0
    for layer in graph.layers:
        if not isinstance(layer, Convolution) or not layer.where.startswith("branches."):
            continue
        lowest, highest = layer.held_range
        assert lowest <= layer.weight.min() and layer.weight.max() <= highest
        assert not torch.signbit(layer.weight[layer.weight == 0]).any()
        own = modules[layer.where].quant_weight()
        turned = (layer.weight != own).flatten(1).any(1)
        assert torch.equal(layer.weight[turned], -own[turned])
        outside = turned & (own == form.offset).flatten(1).any(1) & (not form.is_symmetric)
        assert layer.widened == outside.nonzero().flatten().tolist()
        assert layer.weight_datatype == ("INT3" if layer.widened else form.datatype)
        widened += len(layer.widened)
    assert (widened > 0) == (not form.is_symmetric)


def test_codes_have_the_bits_of_the_profile():
    _, graph = lowered(build("residual"), 4)
    bits = {layer.where: layer.bits for layer in graph.layers if isinstance(layer, Thresholds)}
    assert bits.pop("head.input_quants.fc") == 8
    operands = {where for where in bits if ".sums." in where or where.startswith("merge")}
    assert {bits[where] for where in operands} == {6}
    assert {bits[where] for where in bits if where not in operands} == {4}


def test_a_network_that_maps_has_no_violations():
    assert check_finn(build("residual")) == []
    assert check_finn(build("residual", bits=ODD)) == []


def test_check_works_before_any_data_and_changes_nothing():
    net = multiquantize(TinyNet(), [2, 4], profile="finn", input_shape=IMAGE)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    assert check_finn(net) == []
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())


def test_the_papers_profile_is_refused_with_every_reason():
    net = multiquantize(TinyNet(), [2, 4], input_shape=IMAGE)
    violations = check_finn(net)
    assert [v.where for v in violations] == [
        "stem.stem",
        "branches.0.add",
        "merge",
        "head.fc",
        "branches.1.add",
    ]
    assert all("profile='finn'" in v.advice for v in violations)
    assert {v.where: v.bits for v in violations}["branches.1.add"] == (4,)
    calibrate(net, [torch.randn(2, *IMAGE[1:])])
    with pytest.raises(FinnMappingError, match="at 2 bits: expected a network of the profile"):
        lowered(net, 2)


def test_a_half_branch_is_named_as_its_whole_one():
    net = multiquantize(TinyNet(), [2, 3, 4], input_shape=IMAGE)
    violations = {v.where: v.bits for v in check_finn(net)}
    assert violations["branches.0.add"] == (2, 3, 4)
    assert violations["branches.1.add"] == (3, 4)


def net_of(*layers, size=8):
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        *layers,
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 5),
    )
    return multiquantize(model, [2], profile="finn", input_shape=(1, 3, size, size), check=False)


CONV = nn.Conv2d(8, 8, 3, padding=1)


@pytest.mark.parametrize(
    ("layers", "where", "advice"),
    [
        (
            [CONV, nn.LocalResponseNorm(3)],
            "branches.0.4",
            "LocalResponseNorm has no dataflow layer",
        ),
        (
            [nn.Conv2d(8, 8, 3, padding=1, padding_mode="reflect")],
            "branches.0.3",
            "padding_mode='reflect'",
        ),
        ([CONV, nn.MaxPool2d(2, dilation=2)], "branches.0.4", "max pool with dilation"),
        ([CONV, nn.MaxPool2d(2, stride=3)], "branches.0.4", "stride larger than its kernel"),
        ([CONV, nn.AdaptiveAvgPool2d(3), CONV], "branches.0.4", "windows of several sizes"),
        ([CONV, nn.AdaptiveMaxPool2d(3), CONV], "branches.0.4", "windows of several sizes"),
        ([CONV, nn.Upsample(scale_factor=2, mode="bilinear")], "branches.0.4", "by bilinear"),
        ([CONV, nn.GroupNorm(2, 8), CONV], "branches.0.4", "use nn.BatchNorm2d"),
        (
            [CONV, nn.MaxPool2d(3, padding=1), nn.SiLU(), CONV],
            "branches.0.5",
            "max pool with padding of values that may be negative",
        ),
    ],
)
def test_what_does_not_map_is_named(layers, where, advice):
    (violation,) = check_finn(net_of(*layers))
    assert violation.where == where
    assert advice in violation.advice


class PreActivation(nn.Module):
    """A norm behind an addition."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 3, padding=1)
        self.conv2 = nn.Conv2d(4, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.fc = nn.Linear(4, 5)

    def forward(self, x):
        x = torch.relu(self.conv1(x))
        x = torch.relu(self.norm(x + self.conv2(x)))
        return self.fc(x.mean((2, 3)))


def test_a_negative_norm_scale_behind_an_addition():
    net = multiquantize(PreActivation(), [2], profile="finn", input_shape=IMAGE)
    images = torch.randn(4, *IMAGE[1:])
    calibrate(net, [images])
    subnet, graph = lowered(net.eval(), 2)
    with torch.no_grad():
        assert torch.equal(graph.logits(images), subnet(images))
        net.branches[0].norm["2"].weight[1] = -1.0
    assert check_finn(net) == []
    subnet, graph = lowered(net, 2)
    assert any(isinstance(layer, Subtraction) for layer in graph.layers)
    with torch.no_grad():
        assert torch.equal(graph.logits(images), subnet(images))
