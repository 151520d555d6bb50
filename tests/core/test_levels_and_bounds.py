"""Levels as tensors, bounds for each channel, every way to round: one closed form for all."""

import pytest
import torch
from functorch.compile import make_boxed_func
from torch._dynamo.backends.common import aot_autograd

from brevitas_multiquant.core.clip_quantize import (
    activation_levels,
    quantize_activation,
    quantize_weight,
)
from brevitas_multiquant.core.grids import FAMILIES, Numbers, odd
from tests.reference import clip, round_straight_through

GRIDS = [FAMILIES[name](bits) for name in FAMILIES for bits in (2, 5, 8)]
SHAPES = {
    "tensor": (),
    "one": (1,),
    "output": (3, 1, 1, 1),
    "input": (1, 4, 1, 1),
    "tail": (4, 1, 1),
}
EXACT = {"rtol": 1e-10, "atol": 1e-10}  # sums of a few hundred fp64 numbers in another order


@pytest.fixture(autouse=True)
def _fresh():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def random(shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def leaves(lower_shape, upper_shape):
    """Weights of which each quarter or so is outside of its range, and some on a bound."""
    lower, upper = random(lower_shape, 1) / 4 - 0.8, random(upper_shape, 2) / 4 + 0.7
    x = random((3, 4, 5, 5))
    x[..., 0, 0], x[..., 1, 1] = (bound.expand(3, 4, 1, 1)[..., 0, 0] for bound in (lower, upper))
    return [tensor.clone().requires_grad_() for tensor in (x, lower, upper)]


def floor_straight_through(x):
    return x.detach().floor() + (x - x.detach())


def halved_by_formula(codes, grid):
    """Half of the integers, rounded and clipped to one bit less, for each bit that is left out."""
    smaller, highest = codes, grid.finer.highest
    for _ in range(grid.shift.bit_length() - 1):
        highest //= 2
        smaller = round_straight_through(smaller / 2)
        smaller = smaller - (smaller.detach() - highest).clamp(min=0)
    return smaller


def codes_by_formula(x, lower, upper, grid):
    """What the grid says, differentiated by autograd."""
    first = grid.finer or grid
    position = clip((x - lower) / (upper - lower))
    if first.rounding == "floor":
        bins = (first.levels + 1) * position
        place = floor_straight_through(bins) - (bins.detach() >= first.levels + 1).double()
    else:
        place = round_straight_through(first.levels * position)
    codes = first.step * place + first.offset
    if grid.finer is None:
        return codes
    if grid.halves:
        return halved_by_formula(codes, grid)
    again = round_straight_through(codes / grid.shift)
    return again - (again.detach() - grid.highest).clamp(min=0)


@pytest.mark.parametrize("lower_shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("upper_shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_closed_forms_against_autograd(grid, lower_shape, upper_shape):
    """A range for the tensor, for each output channel, or one of each kind."""
    results, grad = [], random((3, 4, 5, 5), 3)
    for formula in (quantize_weight, codes_by_formula):
        inputs = leaves(lower_shape, upper_shape)
        codes = formula(*inputs, grid)
        results.append([codes, *torch.autograd.grad(codes, inputs, grad)])
    ours, expected = results
    assert torch.equal(ours[0], expected[0])
    assert torch.equal(ours[1] == 0, expected[1] == 0)  # the same mask, bounds included
    for one, other in zip(ours, expected, strict=True):
        assert one.shape == other.shape
        torch.testing.assert_close(one, other, **EXACT)


@pytest.mark.parametrize("shape", [(), (3, 1, 1, 1)])
def test_second_derivatives_for_each_channel(shape):
    x, lower, upper = leaves(shape, shape)
    grad = random((3, 4, 5, 5), 3).requires_grad_()

    def gradients(x, lower, upper, grad):
        codes = quantize_weight(x, lower, upper, odd(4))
        return torch.autograd.grad(codes, (x, lower, upper), grad, create_graph=True)

    def by_formula(x, lower, upper, grad):
        passed = torch.where((x >= lower) & (x <= upper), grad, 0.0)
        sums = lambda t: t.sum_to_size(shape) if shape else t.sum()  # noqa: E731
        slope, position = 30 / (upper - lower), sums(passed * (x - lower)) / (upper - lower)
        return passed * slope, slope * (position - sums(passed)), -slope * position

    results = []
    for function in (gradients, by_formula):
        first = function(x, lower, upper, grad)
        total = sum((random(t.shape, 7) * t * t).sum() for t in first)
        results.append([*first, *torch.autograd.grad(total, (x, lower, upper, grad))])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


@pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")
def test_transforms_with_a_range_for_each_channel():
    """Each image by itself, and several level counts at once."""
    inputs = [t.detach() for t in leaves((4, 1, 1), (4, 1, 1))]
    gradients = torch.func.grad(
        lambda *t: quantize_activation(*t, 4).square().sum(), argnums=(0, 1, 2)
    )
    found = torch.func.vmap(gradients, in_dims=(0, None, None))(*inputs)
    for i, image in enumerate(inputs[0]):
        for all_of_them, one in zip(found, gradients(image, *inputs[1:]), strict=True):
            torch.testing.assert_close(all_of_them[i], one, **EXACT)
    levels = torch.tensor([3, 15])
    several = torch.func.vmap(lambda n: quantize_activation(*inputs, 4, levels=n))(levels)
    for codes, bits in zip(several, (2, 4), strict=True):
        assert torch.equal(codes, quantize_activation(*inputs, bits))


@pytest.mark.parametrize("flush", [False, True])
def test_both_bounds_of_each_channel_are_within_it(flush):
    if flush and not torch.set_flush_denormal(True):
        pytest.skip("this processor cannot flush subnormal numbers")
    try:
        lower = torch.tensor([[0.0], [-1.0], [1e-40], [-0.3]])
        upper = torch.tensor([[1.0], [0.0], [1.0], [0.4]])
        x = torch.cat([lower, upper, lower - 1, upper + 1], 1).requires_grad_()
        quantize_activation(x, lower, upper, 4).sum().backward()
        assert torch.equal(x.grad != 0, torch.tensor([[True, True, False, False]] * 4))
    finally:
        torch.set_flush_denormal(False)


def with_all_ties(bits, lower, upper):
    """Random values, and every value halfway between two codes."""
    levels = activation_levels(bits)
    x = torch.randn(20000, generator=torch.Generator().manual_seed(bits))
    x[:levels] = (torch.arange(levels) + 0.5) / levels * (upper - lower) + lower
    return x


@pytest.mark.parametrize("bits", range(2, 9))
def test_levels_in_a_tensor_give_the_same_bits(bits):
    """Read, not read, in a graph: codes and gradients of the numbers, every tie included."""
    lower, upper = torch.tensor(-0.31), torch.tensor(1.7)
    x, levels = with_all_ties(bits, lower, upper), torch.tensor(activation_levels(bits))
    grad = torch.linspace(-1, 2, len(x))
    compiled = torch.compile(quantize_activation, backend="aot_eager", fullgraph=True)
    results = []
    for function, most, given in (
        (quantize_activation, bits, None),
        (quantize_activation, 8, levels),
        (quantize_activation, 8, levels.float()),
        (quantize_activation, 8, levels[None]),
        (compiled, 8, levels),
    ):
        inputs = [t.clone().requires_grad_() for t in (x, lower, upper)]
        codes = function(*inputs, most, levels=given)
        results.append([codes.detach(), *torch.autograd.grad(codes, inputs, grad)])
    for codes, x_grad, *bounds in results[1:]:
        assert torch.equal(codes, results[0][0]) and torch.equal(x_grad, results[0][1])
        for one, other in zip(bounds, results[0][2:], strict=True):
            # sums of 20000 fp32 numbers in another order
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-2)


def test_levels_for_each_channel():
    x, lower, upper = (t.detach() for t in leaves((), ()))
    bits = (2, 4, 7)
    levels = torch.tensor([activation_levels(b) for b in bits]).view(3, 1, 1, 1)
    tensors = [t.clone().requires_grad_() for t in (x, lower, upper)]
    codes = quantize_activation(*tensors, 8, levels=levels)
    found = torch.autograd.grad(codes.square().sum(), tensors)
    parts = []
    for i, b in enumerate(bits):
        own = [t.clone().requires_grad_() for t in (x[i], lower, upper)]
        part = quantize_activation(*own, b)
        assert torch.equal(codes[i], part)
        parts.append(torch.autograd.grad(part.square().sum(), own))
    torch.testing.assert_close(found[0], torch.stack([part[0] for part in parts]), **EXACT)
    for i in (1, 2):
        torch.testing.assert_close(found[i], sum(part[i] for part in parts), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_largest_bit_width_decides_the_type(dtype):
    """Not the one that runs: a graph has one type."""
    x, lower, upper = torch.randn(50, dtype=dtype), torch.tensor(-1.0), torch.tensor(1.0)
    for levels in (None, torch.tensor(3)):
        assert quantize_activation(x, lower, upper, 8, levels=levels).dtype == dtype
        assert quantize_activation(x, lower, upper, 10, levels=levels).dtype == torch.float32
    numbers = Numbers(*torch.tensor(odd(2).numbers))
    assert quantize_weight(x, lower, upper, odd(8), numbers).dtype == dtype
    assert quantize_weight(x, lower, upper, odd(9), numbers).dtype == torch.float32


@pytest.mark.parametrize("shape", [(), (4, 1, 1)])
def test_nothing_is_read_on_other_devices(shape):
    """Reading a number would wait for the device; the meta device has none to read."""
    x = torch.empty(2, 4, 3, 3, device="meta", requires_grad=True)
    lower, upper = (torch.empty(shape, device="meta", requires_grad=True) for _ in range(2))
    row = torch.tensor(odd(4).numbers, device="meta")
    codes = quantize_activation(x, lower, upper, 8, levels=row[0])
    (codes + quantize_weight(x, lower, upper, odd(8), Numbers(*row))).sum().backward()
    assert x.grad.shape == x.shape and lower.grad.shape == upper.grad.shape == shape


def test_a_levels_tensor_that_changes_before_the_backward():
    """All bit-widths forward, then all backward, with one tensor filled anew between."""
    lower, upper = torch.tensor(-1.0), torch.tensor(1.0)
    x, levels, losses = torch.linspace(-2, 2, 99, requires_grad=True), torch.tensor([255]), []
    for bits in (8, 2):
        levels.fill_(activation_levels(bits))
        losses.append(quantize_activation(x, lower, upper, 8, levels=levels).sum())
    found = [torch.autograd.grad(loss, x)[0].max().item() for loss in losses]
    assert found == [255 / 2, 3 / 2]


class Switched(torch.nn.Module):
    """Activations and weights at the bit-width that its buffers say."""

    def __init__(self, family, shape):
        super().__init__()
        self.finest = FAMILIES[family](8)
        self.lower = torch.nn.Parameter(torch.full(shape, -0.9))
        self.upper = torch.nn.Parameter(torch.full(shape, 1.1))
        self.register_buffer("levels", torch.tensor(255))
        self.register_buffer("row", torch.tensor(self.finest.numbers))

    def switch(self, family, bits):
        self.levels.fill_(activation_levels(bits))
        self.row.copy_(torch.tensor(FAMILIES[family](bits).numbers))

    def forward(self, x):
        codes = quantize_activation(x, self.lower, self.upper, 8, levels=self.levels)
        numbers = Numbers(*self.row)
        return codes * quantize_weight(x.sin(), self.lower, self.upper, self.finest, numbers)


@pytest.mark.parametrize("shape", [(), (4, 1, 1)])
@pytest.mark.parametrize("family", FAMILIES)
def test_one_graph_for_all_bit_widths(family, shape):
    graphs = []

    def counting(kind):
        return lambda graph, _: graphs.append(kind) or make_boxed_func(graph.forward)

    backend = aot_autograd(fw_compiler=counting("forward"), bw_compiler=counting("backward"))
    module, x = Switched(family, shape), torch.randn(2, 4, 3, 3)
    compiled = torch.compile(module, backend=backend, fullgraph=True)
    for bits in (*range(2, 9), 5, 2):
        module.switch(family, bits)
        results = []
        for run in (compiled, module):
            leaf = x.clone().requires_grad_()
            module.zero_grad()
            codes = run(leaf)
            codes.square().sum().backward()
            results.append([codes, leaf.grad, module.lower.grad, module.upper.grad])
        assert torch.equal(results[0][0], results[1][0])
        for one, other in zip(*results, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-1)  # large fp32 sums
    assert graphs == ["forward", "backward"]
