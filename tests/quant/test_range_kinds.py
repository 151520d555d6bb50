"""Every quantizer of the methods, and its gradients, against autograd over the papers' formulas.

In fp64: what differs are the last bits of sums of some hundred numbers in another order.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from timm.layers import ScaledStdConv2d
from torch import Tensor, nn

from brevitas_multiquant.core.panel import Panel
from brevitas_multiquant.errors import CalibrationError
from brevitas_multiquant.nn.switchable import SwitchableQuantizer
from brevitas_multiquant.quant.injectors import WeightAtRunTimeLearnedRange
from brevitas_multiquant.quant.layers import CodeLayer, code_layer, weight_range
from brevitas_multiquant.quant.proxies import activation_tensor_quant
from brevitas_multiquant.quant.range_kinds import ACTIVATION_RANGES, WEIGHT_RANGES
from brevitas_multiquant.quant.ranges import LearnedRange
from tests.formulas import GRIDS, activation_values_of, weight_values

BITS = (2, 3, 4, 5, 6, 8)
FAMILIES = {"original": "odd", "modified": "modified", "centered": "centered", "double": "double"}
QUANTIZERS = [
    *(
        (grid, kind)
        for grid in ("original", "modified", "centered")
        for kind in ("learned", "tanh")
    ),
    ("original", "tanh_times_mean"),
    ("double", "step"),
    ("double", "learned"),
]
every_quantizer = pytest.mark.parametrize(("grid", "kind"), QUANTIZERS)


def layer_of(
    grid: str, kind: str, bits: tuple[int, ...] = BITS, conv: nn.Module | None = None
) -> tuple[Any, Panel]:
    panel = Panel(max(bits), weight_bits=None)
    injector = WeightAtRunTimeLearnedRange.let(
        family=FAMILIES[grid], candidate_bits=bits, range_impl=WEIGHT_RANGES[kind]
    )
    layer = code_layer(conv or nn.Conv2d(6, 10, 3, bias=False), panel, injector)
    return layer.double(), panel


def trained(layer: CodeLayer) -> list[Tensor]:
    return list(weight_range(layer).parameters())


@every_quantizer
def test_weights_and_their_gradients(grid: str, kind: str) -> None:
    layer, panel = layer_of(grid, kind)
    with torch.no_grad():
        layer.weight.mul_(4)  # where tanh bends
        layer.weight.view(-1)[:3] *= 10  # some are clipped
        for number, factor in zip(trained(layer), (0.8, 0.9), strict=False):
            number.mul_(factor)
    for bits in BITS:
        panel.bits = bits
        found = layer.quant_weight() * layer.output_scale * (2**bits - 1)
        numbers = trained(layer)
        expected = weight_values(layer.weight, kind, numbers, grid, bits, max(BITS))
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
        gradient = torch.randn_like(found)
        inputs = [layer.weight, *numbers]
        ours = torch.autograd.grad(found, inputs, gradient)
        theirs = torch.autograd.grad(expected, inputs, gradient)
        for one, other in zip(ours, theirs, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("kind", ACTIVATION_RANGES)
def test_activations_and_their_gradients(kind: str) -> None:
    panel = Panel(8)
    quantizer = SwitchableQuantizer.create(
        BITS, panel, panel.dial("site"), ranges=ACTIVATION_RANGES[kind]
    ).double()
    x = torch.randn(4, 3, 5, 5, dtype=torch.float64, requires_grad=True)
    for bits in BITS:
        panel.bits = bits
        quantizer.train()(x)  # takes its range
        learned = activation_tensor_quant(quantizer[str(bits)]).range_impl
        inputs = list(learned.parameters())
        numbers = [learned.lower, *inputs] if kind == "step" else inputs
        for own in (bits, 2, 8):
            panel.own = {"site": own}
            found = quantizer(x) / (2**own - 1)
            expected = activation_values_of(x, kind, numbers, bits, own)
            torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
            gradient = torch.randn_like(found)
            ours = torch.autograd.grad(found, [x, *inputs], gradient)
            theirs = torch.autograd.grad(expected, [x, *inputs], gradient)
            for one, other in zip(ours, theirs, strict=True):
                torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)
        panel.own = {}


LAYERS: dict[str, Callable[[], nn.Module]] = {
    "Conv1d": lambda: nn.Conv1d(6, 8, 3, stride=2, padding=1),
    "grouped": lambda: nn.Conv2d(6, 8, 3, padding=1, groups=2, bias=False),
    "depthwise": lambda: nn.Conv2d(6, 6, 3, padding=1, groups=6),
    "Linear": lambda: nn.Linear(6, 8),
    "standardised": lambda: ScaledStdConv2d(6, 8, 3, padding=1),
}


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize(
    ("grid", "kind"),
    [("centered", "learned"), ("original", "tanh_times_mean"), ("double", "step")],
)
def test_every_kind_of_layer(grid: str, kind: str, name: str) -> None:
    """Outputs and gradients against formulas in fp64, and the plain form to the bit in fp32."""
    plain, bits = LAYERS[name](), (2, 4, 8)
    if hasattr(plain, "gain"):
        nn.init.uniform_(plain.gain, 0.5, 1.5)
    layer, panel = layer_of(grid, kind, bits, plain)
    spatial = {nn.Linear: (), nn.Conv1d: (9,)}.get(type(plain), (5, 5))
    for one in bits:
        panel.bits, levels = one, 2**one - 1
        codes = torch.randint(0, 2**one, (4, 6, *spatial)).double()
        found = layer.train()(codes)
        values = weight_values(layer.effective_weight(), kind, trained(layer), grid, one, max(bits))
        expected = operation(plain, codes / levels, values, layer.bias)
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
        gradient = torch.randn_like(found)
        inputs = list(layer.parameters())
        ours = torch.autograd.grad(found, inputs, gradient)
        theirs = torch.autograd.grad(expected, inputs, gradient)
        for ours_, other in zip(ours, theirs, strict=True):
            torch.testing.assert_close(ours_, other, rtol=1e-10, atol=1e-10)
    layer.float().eval()
    for one in bits:
        panel.bits = one
        codes = torch.randint(0, 2**one, (4, 6, *spatial)).float()
        with torch.no_grad():
            assert torch.equal(layer.frozen(one, name)(codes), layer(codes))


def operation(plain: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """What a layer does with a weight."""
    if isinstance(plain, nn.Linear):
        return F.linear(x, weight, bias)
    convolve = F.conv1d if isinstance(plain, nn.Conv1d) else F.conv2d
    return convolve(x, weight, bias, plain.stride, plain.padding, groups=plain.groups)


@pytest.mark.parametrize("kind", ["learned", "tanh"])
@pytest.mark.parametrize("grid", ["modified", "centered"])
def test_few_bits_are_the_first_of_more(grid: str, kind: str) -> None:
    """For every pair, so that the integers of the most bits are all there is to store."""
    bits = tuple(range(1, 9))
    layer, panel = layer_of(grid, kind, bits)
    layer.float()
    places = {}
    for one in bits:
        panel.bits = one
        form = layer.weight_format
        places[one] = ((layer.quant_weight() - form.offset) / form.step).long()
    assert places[8].unique().numel() > 100
    for few in bits:
        for many in range(few, 9):
            assert torch.equal(places[few], places[many] >> (many - few)), (few, many)


def test_rounded_twice_from_what_is_stored() -> None:
    layer, panel = layer_of("double", "step")
    stored = layer.quant_weight()
    assert bool((stored == stored.round()).all()) and stored.abs().max() <= 127
    for bits in BITS:
        panel.bits = bits
        again = (stored / 2 ** (8 - bits)).round().clamp(max=2 ** (bits - 1) - 1)
        assert torch.equal(layer.quant_weight(), again)
    assert layer.quant_weight().unique().numel() > 100


@pytest.mark.parametrize("stored", [4, 8])
def test_a_step_that_values_keep_gets_the_same_gradient(stored: int) -> None:
    """As published, values are W s 2**D; a norm that follows takes the factor out, s knows it."""
    bits = (2, stored)
    layer, panel = layer_of("double", "step", bits)
    x = torch.rand(3, 6, 7, 7, dtype=torch.float64)
    target = torch.randn(3, 10, 5, 5, dtype=torch.float64)
    for one in bits:
        panel.bits = one
        step, weight = weight_range(layer).step, layer.weight
        largest = 2 ** (stored - 1) - 1
        values = layer.quant_weight() / layer.weight_format.divisor
        # s, kept: s (2**(h-1) - 1) times values between -1 and 1
        for factor in (1.0, step * largest):
            y = F.conv2d(x, values * factor)
            centred = y - y.mean((0, 2, 3), keepdim=True)
            normed = centred / centred.square().mean((0, 2, 3), keepdim=True).sqrt()
            grads = torch.autograd.grad((normed * target).sum(), [weight, step], retain_graph=True)
            if factor == 1.0:
                expected = grads
        for one_gradient, other in zip(grads, expected, strict=True):
            torch.testing.assert_close(one_gradient, other, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("kind", WEIGHT_RANGES)
def test_what_weight_ranges_answer(kind: str) -> None:
    layer, _ = layer_of("double" if kind == "step" else "original", kind)
    placed = weight_range(layer)
    assert placed.ready
    keys = [name for name in layer.state_dict() if "range_impl" in name]
    own = {"learned": ["lower", "upper", "observed"], "step": ["step", "observed"]}.get(kind, [])
    assert [key.rpartition(".")[2] for key in keys] == own
    assert isinstance(placed, LearnedRange) == bool(own)
    entries = [entry.name for entry in placed.stored("range")]
    assert entries == (["range"] if own else [])
    placed.set_from(2 * layer.weight)
    layer.half()
    assert layer.quant_weight().dtype == torch.float16


@pytest.mark.parametrize("kind", ["tanh", "tanh_times_mean"])
def test_weights_that_are_all_zero(kind: str) -> None:
    """They lie in the middle, halfway between two integers, and get gradients."""
    layer, _ = layer_of("original", kind)
    nn.init.zeros_(layer.weight)
    codes = layer.quant_weight()
    assert codes.abs().max() == 1
    codes.sum().backward()
    assert layer.weight.grad.isfinite().all()


def test_a_step_that_has_seen_no_data_is_refused() -> None:
    panel = Panel(4)
    quantizer = SwitchableQuantizer.create((4,), panel, ranges=ACTIVATION_RANGES["step"]).eval()
    with pytest.raises(CalibrationError, match="expected a range initialised from data"):
        quantizer(torch.rand(2, 3))
    unit = SwitchableQuantizer.create((4,), panel, ranges=ACTIVATION_RANGES["unit"]).eval()
    assert unit(torch.tensor([-1.0, 0.5, 2.0])).tolist() == [0.0, 8.0, 15.0]
    assert not unit.state_dict()


def test_grids_of_the_reference_are_those_of_the_papers() -> None:
    x = torch.linspace(0, 1, 1001, dtype=torch.float64)
    levels = {name: grid(x, 2, 8).unique().tolist() for name, grid in GRIDS.items()}
    assert levels["original"] == pytest.approx([-1, -1 / 3, 1 / 3, 1])
    assert levels["modified"] == [-1, -0.5, 0, 0.5]
    assert levels["centered"] == [-0.75, -0.25, 0.25, 0.75]
    assert levels["double"] == pytest.approx([-128 / 127, -64 / 127, 0, 64 / 127])
