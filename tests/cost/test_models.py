"""Bit operations under two conventions, and the same arithmetic for tensors."""

from functools import partial
from typing import Any

import pytest
import timm
import torch
import torchvision

import brevitas_multiquant.core.cifar_networks  # noqa: F401  (registers the CIFAR networks)
from brevitas_multiquant import cost, multiquantize
from brevitas_multiquant.cost import Layer, bitops, inventory_of, total_bitops, weight_bytes
from brevitas_multiquant.errors import ConfigError
from brevitas_multiquant.quant.member import answers_of
from brevitas_multiquant.quant.slices import LayerSlice
from tests.cost.test_cost import BODY, HEAD, STEM


@pytest.fixture(scope="module")
def resnet18() -> tuple[Layer, ...]:
    shape = (1, 3, 224, 224)
    net = multiquantize(torchvision.models.resnet18(), [2], input_shape=shape, check=False)
    return inventory_of(net, shape).at(2)


@pytest.mark.parametrize(("bits", "giga"), [(3, 22.83), (4, 34.70)])
def test_budgets_that_fracbits_names(resnet18: Any, bits: int, giga: float) -> None:
    """Two decimals are what its configurations give."""
    total = total_bitops(resnet18, lambda layer: (bits, bits), "fracbits")
    assert total / 1e9 == pytest.approx(giga, abs=0.005)


def test_conventions_by_hand(resnet18: Any) -> None:
    first, *body, classifier = resnet18
    assert (first.part, first.name, classifier.part, classifier.name) == (
        *("stem", "conv1"),
        *("head", "fc"),
    )
    assert len(body) == 19 and {layer.part for layer in body} == {"branch"}
    macs = sum(layer.macs for layer in body)
    uniform = partial(total_bitops, resnet18, lambda layer: (5, 3))
    assert uniform() == macs * 5 * 3
    assert uniform("fracbits") == first.macs * 64 + macs * 5 * 3 + classifier.macs * 8 * 3
    assert classifier.weights == 512 * 1000
    assert classifier.macs == 512 * 1000


def test_tensors_cost_what_numbers_do(resnet18: Any) -> None:
    """In fp64, which holds these integers; a gradient is the MACs times the other side's bits."""
    bits = torch.tensor([3.0, 4.0], dtype=torch.float64, requires_grad=True)
    weight, read = bits.unbind()
    for convention in ("quantized", "fracbits"):
        whole = total_bitops(resnet18, lambda layer: (3, 4), convention)
        total = total_bitops(resnet18, lambda layer: (weight, read), convention)
        assert isinstance(whole, int) and total.item() == whole
    (gradient,) = torch.autograd.grad(total, bits, retain_graph=True)
    *macs, classifier = (layer.macs for layer in resnet18[1:])
    assert gradient.tolist() == [sum(macs) * 4, sum(macs) * 3 + classifier * 8]
    assert weight_bytes(8, weight).item() == weight_bytes(8, 3) == 3.0
    assert bitops(7, weight, read).item() == bitops(7, 3, 4) == 84


def test_costs_of_a_network_by_convention(make_net: Any) -> None:
    """A float classifier reads floats: 8-bit weights and 32-bit inputs."""
    net = make_net()
    ours, theirs = cost(net), cost(net, convention="fracbits")
    for bits, branches in ((2, 1), (4, 2)):
        assert ours[bits].bitops == branches * BODY * 2 * bits
        assert theirs[bits].bitops == ours[bits].bitops + STEM * 64 + HEAD * 8 * 32
    with pytest.raises(ConfigError, match=r"convention: expected one of .*'fracbits'.*'bops'"):
        cost(net, convention="bops")


def test_hardware_counts_the_same_by_either(make_net: Any) -> None:
    """What the profile quantizes is what the other convention takes for granted."""
    net = make_net(profile="finn")
    assert {b: c.bitops for b, c in cost(net).items()} == {
        b: c.bitops for b, c in cost(net, convention="fracbits").items()
    }


def test_branches_are_measured_as_they_run() -> None:
    """Half branches have layers of their own; those of equal shapes are measured once."""
    net = multiquantize(
        timm.create_model("cifar_resnet8"), [2, 3, 4], input_shape=(1, 3, 32, 32), check=False
    )
    layers = inventory_of(net, (1, 3, 32, 32))
    whole, half = (
        sum(layer.macs for layer in some)
        for some in (layers.branches[2], layers.branches[3][len(layers.branches[2]) :])
    )
    assert 0 < half <= whole / 2
    assert sum(layer.macs for layer in layers.branches[4]) == 2 * whole
    costs = cost(net)
    assert (costs[3].macs, costs[3].bitops) == (whole + half, (whole + half) * 2 * 3)


def test_a_gain_is_in_the_codes_of_a_half_branch() -> None:
    """What a lone half branch borrows is what a file has of the whole one: no gain beside codes."""
    net = multiquantize(timm.create_model("test_nfnet"), [3, 4], input_shape=(1, 3, 32, 32))
    borrowed = {
        name: [(entry.kind, entry.name, entry.size) for entry in answers_of(module).stored(name)]
        for name, module in net.halves["1"].named_modules()
        if isinstance(module, LayerSlice)
    }
    with_gain = [name for name in borrowed if hasattr(net.branches[1].get_submodule(name), "gain")]
    assert with_gain
    for name in with_gain:
        layer = net.halves["1"].get_submodule(name)
        assert borrowed[name] == [
            ("codes", name, -(-layer.weight.numel() // 4)),
            ("ranges", name, 2),
            ("floats", f"{name}.bias", layer.bias.numel()),
        ]
