"""The quantizer's values and closed-form gradients against the paper's formulas with autograd."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from brevitas_multiquant.core import clip_quantize
from brevitas_multiquant.core.grids import WEIGHT_FORMATS
from tests import reference

BITS = [2, 4, 6, 8]
RANGES = [(0.0, 1.0), (-0.7, 1.3), (30.0, 31.0)]
TOLERANCE = {
    # the same formulas in the same precision, associated differently: a few units of 2**-53
    # times the condition of the sums for l and u, below 1e4 here
    torch.float64: 1e-10,
    # likewise with 2**-24: the bound of the specification
    torch.float32: 2e-5,
}


def bounds(lower, upper, dtype):
    make = torch.tensor
    return make(lower, dtype=dtype, requires_grad=True), make(
        upper, dtype=dtype, requires_grad=True
    )


def spread_values(lower, upper, levels, dtype):
    """Values around every code but away from rounding ties, on both bounds, and outside.

    Ties are left out because two correct formulas may round them differently.
    """
    generator = torch.Generator().manual_seed(levels)
    jitter = torch.rand(20, levels + 1, generator=generator, dtype=torch.float64) * 0.8 - 0.4
    x = lower + (upper - lower) * (torch.arange(levels + 1) + jitter).flatten() / levels
    lowest, highest = torch.tensor(lower, dtype=dtype), torch.tensor(upper, dtype=dtype)
    # a thousandth of the width outside, so that neither formula can round it back to the bound
    outside = (upper - lower) * 1e-3
    edges = torch.stack([lowest, highest, lowest - outside, highest + outside]).repeat(25)
    return torch.cat([x.to(dtype), edges])


def relative_error(ours, oracle):
    oracle = oracle.double()
    return ((ours.double() - oracle).abs().max() / oracle.abs().max()).item()


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(("lower", "upper"), RANGES)
@pytest.mark.parametrize("bits", BITS)
def test_activation_against_the_paper(bits, lower, upper, dtype):
    levels = 2**bits - 1
    x = spread_values(lower, upper, levels, dtype).requires_grad_()
    lo, hi = bounds(lower, upper, dtype)
    grad = torch.randn(x.shape, generator=torch.Generator().manual_seed(3)).to(dtype)
    codes = clip_quantize.quantize_activation(x, lo, hi, bits)
    (codes / levels).backward(grad)

    # the oracle always computes in fp64, from the very numbers that the quantizer got
    inputs = [t.detach().double().requires_grad_() for t in (x, lo, hi)]
    values = reference.activation_values(*inputs, bits)
    values.backward(grad.double())

    assert torch.equal(codes.double(), (values * levels).detach().round())
    for ours, oracle in zip((x, lo, hi), inputs, strict=True):
        assert relative_error(ours.grad, oracle.grad) <= TOLERANCE[dtype]
    assert torch.equal(x.grad == 0, inputs[0].grad == 0)  # the same mask, value by value


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(("lower", "upper"), RANGES)
def test_weight_against_the_paper(lower, upper, dtype):
    w = spread_values(lower, upper, 3, dtype).requires_grad_()
    lo, hi = bounds(lower, upper, dtype)
    grad = torch.randn(w.shape, generator=torch.Generator().manual_seed(4)).to(dtype)
    codes = clip_quantize.quantize_weight(w, lo, hi)
    (codes / 3).backward(grad)

    inputs = [t.detach().double().requires_grad_() for t in (w, lo, hi)]
    values = reference.weight_values(*inputs)
    values.backward(grad.double())

    assert torch.equal(codes.double(), (values * 3).detach().round())
    assert set(codes.tolist()) == {-3.0, -1.0, 1.0, 3.0}
    for ours, oracle in zip((w, lo, hi), inputs, strict=True):
        assert relative_error(ours.grad, oracle.grad) <= TOLERANCE[dtype]


REAL_LEVELS = {
    "odd": (-1, -1 / 3, 1 / 3, 1),
    "int2": (-1, -1 / 2, 0, 1 / 2),
    "ternary": (-1, 0, 1),
}


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(("lower", "upper"), RANGES)
@pytest.mark.parametrize("name", WEIGHT_FORMATS)
def test_every_weight_format_against_its_real_levels(name, lower, upper, dtype):
    """Both bounds themselves are among the weights."""
    weight_format, levels = WEIGHT_FORMATS[name], REAL_LEVELS[name]
    w = spread_values(lower, upper, len(levels) - 1, dtype).requires_grad_()
    lo, hi = bounds(lower, upper, dtype)
    assert (w == lo).any() and (w == hi).any()
    grad = torch.randn(w.shape, generator=torch.Generator().manual_seed(6)).to(dtype)
    codes = clip_quantize.quantize_weight(w, lo, hi, weight_format)
    (codes / weight_format.divisor).backward(grad)

    inputs = [t.detach().double().requires_grad_() for t in (w, lo, hi)]
    values = reference.weight_values_among(*inputs, levels)
    values.backward(grad.double())

    expected = (values.detach() * weight_format.divisor).round()
    assert torch.equal(codes.double(), expected)
    assert tuple(codes.unique().tolist()) == weight_format.integers
    for ours, oracle in zip((w, lo, hi), inputs, strict=True):
        assert relative_error(ours.grad, oracle.grad) <= TOLERANCE[dtype]
    assert torch.equal(w.grad == 0, inputs[0].grad == 0)  # the same mask, bounds included


@pytest.mark.parametrize("bits", BITS)
def test_zeros_of_a_relu_count_as_inside(bits):
    """Half of what follows a ReLU is exactly l = 0; torch.clamp would drop its gradient."""
    x = torch.tensor([0.0, 0.0, 0.0, 1.0], dtype=torch.float64, requires_grad=True)
    lower, upper = bounds(0.0, 1.0, torch.float64)
    clip_quantize.quantize_activation(x, lower, upper, bits).sum().backward()
    levels = 2**bits - 1
    assert x.grad.tolist() == [levels] * 4
    assert lower.grad.item() == -3 * levels  # d/dl = -(1 - position) at each of the three zeros
    assert upper.grad.item() == -1 * levels  # d/du = -position, which is 1 at x = u


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_mask_ends_exactly_at_the_bounds(dtype):
    lower, upper = bounds(-0.5, 0.25, dtype)
    inf = torch.tensor(float("inf"), dtype=dtype)
    x = torch.stack(
        [
            lower.detach(),
            upper.detach(),
            torch.nextafter(lower.detach(), -inf),
            torch.nextafter(upper.detach(), inf),
        ]
    ).requires_grad_()
    clip_quantize.quantize_activation(x, lower, upper, 4).sum().backward()
    assert (x.grad != 0).tolist() == [True, True, False, False]


@pytest.mark.parametrize("bits", BITS)
def test_gradients_by_finite_differences(bits):
    """Straight through the rounding means: the gradient of the formula without it."""
    lower, upper = bounds(-0.7, 1.3, torch.float64)
    x = torch.linspace(-1.5, 2.0, 97, dtype=torch.float64)  # none of them on a bound
    grad = torch.linspace(-1.0, 2.0, 97, dtype=torch.float64)
    clip_quantize.quantize_activation(x, lower, upper, bits).backward(grad)

    def unrounded(lo, hi):
        return (grad * (2**bits - 1) * reference.clip((x - lo) / (hi - lo))).sum()

    step = 1e-6  # truncation error of a central difference: step**2 times a third derivative
    with torch.no_grad():
        by_lower = (unrounded(lower + step, upper) - unrounded(lower - step, upper)) / (2 * step)
        by_upper = (unrounded(lower, upper + step) - unrounded(lower, upper - step)) / (2 * step)
    # cancellation of two sums near 1e3 leaves 1e3 * 2**-53 / 1e-6 = 1e-7
    torch.testing.assert_close(lower.grad, by_lower, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(upper.grad, by_upper, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("bits", [*BITS, 10])
def test_half_precision_gives_the_codes_of_fp32(bits, dtype):
    x = torch.randn(5000).to(dtype)
    lower, upper = torch.tensor(-1.1), torch.tensor(1.7)
    half = clip_quantize.quantize_activation(x, lower, upper, bits)
    full = clip_quantize.quantize_activation(x.float(), lower, upper, bits)
    assert torch.equal(half.float(), full)
    # 8 significant bits hold every code up to 256, no more
    assert half.dtype == (dtype if bits <= 8 else torch.float32)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("lower", [0.0, -5.0, 300.0, -4e6])
@pytest.mark.parametrize("below", [0.0, 1.0])
def test_range_that_is_not_one_stays_finite(lower, below, dtype):
    """u <= l: codes stay codes, gradients stay finite, also where l swallows a small width."""
    x = torch.tensor([lower - 1e7, lower, lower + 1e7], dtype=dtype, requires_grad=True)
    lo, hi = bounds(lower, lower - below, torch.float32)
    codes = clip_quantize.quantize_activation(x, lo, hi, 4)
    assert codes[0] == 0 and codes[2] == 15 and 0 <= codes[1] <= 15
    codes.sum().backward()
    for gradient in (x.grad, lo.grad, hi.grad):
        assert torch.isfinite(gradient).all()
    assert clip_quantize.guarded_upper(lo, hi) > lo


def test_guard_leaves_a_proper_range_alone():
    lower, upper = torch.tensor(-1.0), torch.tensor(2.0)
    assert clip_quantize.guarded_upper(lower, upper) == upper


FINITE = {"allow_nan": False, "allow_infinity": False}
ANY_RANGE = st.tuples(st.floats(-1e3, 1e3, **FINITE), st.floats(1e-2, 1e3, **FINITE))
VALUES = st.lists(st.floats(-1e4, 1e4, **FINITE), min_size=1, max_size=40)


def as_tensors(limits, values):
    lower = torch.tensor(limits[0], dtype=torch.float64)
    return lower, lower + limits[1], torch.tensor(values, dtype=torch.float64)


@given(ANY_RANGE, VALUES, st.sampled_from([*BITS, 10, 16]))
def test_codes_are_levels_and_monotone(limits, values, bits):
    lower, upper, x = as_tensors(limits, sorted(values))
    codes = clip_quantize.quantize_activation(x, lower, upper, bits)
    assert torch.equal(codes, codes.round())
    assert codes.min() >= 0 and codes.max() <= clip_quantize.activation_levels(bits)
    assert (codes.diff() >= 0).all()


@given(ANY_RANGE, VALUES, st.sampled_from(list(WEIGHT_FORMATS.values())))
def test_weight_codes_are_of_their_format_and_monotone(limits, values, weight_format):
    lower, upper, w = as_tensors(limits, sorted(values))
    codes = clip_quantize.quantize_weight(w, lower, upper, weight_format)
    assert set(codes.tolist()) <= set(weight_format.integers)
    assert (codes.diff() >= 0).all()


@given(ANY_RANGE, st.sampled_from(BITS))
def test_quantizing_a_level_again_changes_nothing(limits, bits):
    levels = clip_quantize.activation_levels(bits)
    lower, upper, _ = as_tensors(limits, [])
    codes = torch.arange(levels + 1, dtype=torch.float64)
    values = lower + (upper - lower) * codes / levels
    assert torch.equal(clip_quantize.quantize_activation(values, lower, upper, bits), codes)


def test_compiles_without_graph_break():
    """`aot_eager` traces forward and backward as the compiler would, without a C++ compiler."""
    compiled = torch.compile(clip_quantize.quantize_activation, fullgraph=True, backend="aot_eager")
    x = torch.linspace(-1, 2, 31)
    results = []
    for function in (clip_quantize.quantize_activation, compiled):
        leaf = x.clone().requires_grad_()
        lower, upper = bounds(-0.2, 1.1, torch.float32)
        codes = function(leaf, lower, upper, 4)
        codes.sum().backward()
        results.append((codes.detach(), leaf.grad, lower.grad, upper.grad))
    for eager, traced in zip(*results, strict=True):
        assert torch.equal(eager, traced)  # the same kernels in the same order
