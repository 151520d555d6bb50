"""Fixed-point quantization against exact rational arithmetic, and its closed-form gradients."""

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from brevitas_multiquant.core.power_of_two import (
    integer_range,
    power_of_two_scale,
    quantize_fixed_point,
)

floats = st.floats(-100, 100, width=32, allow_subnormal=False)


def slow_scale(reach, bits, signed):
    """The smallest power of two, found by trying."""
    exponent = -60
    while Fraction(2) ** (exponent + bits - signed) < Fraction(reach):
        exponent += 1
    return Fraction(2) ** exponent


@given(st.floats(2**-20, 1000, width=32), st.integers(2, 8), st.booleans())
def test_scale_is_the_smallest_power_of_two(reach, bits, signed):
    scale = power_of_two_scale(torch.tensor(reach), bits, signed)
    assert Fraction(scale.item()) == slow_scale(reach, bits, signed)


@given(floats, st.floats(2**-10, 64, width=32), st.integers(2, 8), st.booleans())
def test_value_is_the_nearest_multiple_ties_up(x, reach, bits, signed):
    scale = slow_scale(reach, bits, signed)
    lowest, highest = integer_range(bits, signed)
    # the quotient of fp32 numbers plus a half is itself rounded to fp32, as hardware tables see it
    shifted = (torch.tensor(x) / torch.tensor(float(scale)) + 0.5).item()
    expected = scale * min(max(math.floor(shifted), lowest), highest)
    value = quantize_fixed_point(torch.tensor([x]), torch.tensor(reach), bits, signed)
    assert Fraction(value.item()) == expected
    if lowest * scale <= Fraction(x) <= highest * scale:
        assert abs(Fraction(value.item()) - Fraction(x)) <= scale / 2 * (1 + Fraction(1, 2**20))


def test_a_reach_of_nothing_is_not_a_scale_of_nothing():
    assert quantize_fixed_point(torch.ones(1), torch.tensor(0.0), 4, True) > 0


@pytest.mark.parametrize("signed", [True, False])
def test_gradients(signed):
    """Inside the range x passes; the scale moves a value by its rounding error, or its integer."""
    x = torch.tensor([-5.0, -0.9, -0.3, 0.3, 0.6, 0.9, 5.0], requires_grad=True)
    reach = torch.tensor(1.0, requires_grad=True)
    weights = torch.arange(1.0, 8.0)
    (quantize_fixed_point(x, reach, 3, signed) * weights).sum().backward()
    scale = 0.25 if signed else 0.125
    lowest, highest = integer_range(3, signed)
    rounded = torch.floor(x.detach() / scale + 0.5)
    inside = (rounded >= lowest) & (rounded <= highest)
    assert torch.equal(x.grad, weights * inside)
    slope = torch.where(inside, rounded - x.detach() / scale, rounded.clamp(lowest, highest))
    # summed in another order: 7 terms of fp32
    torch.testing.assert_close(reach.grad, (weights * slope).sum() * scale, rtol=1e-6, atol=1e-6)


def test_half_precision_is_quantized_in_fp32():
    x = torch.rand(100).to(torch.bfloat16)
    values = quantize_fixed_point(x, torch.tensor(1.0), 8, False)
    assert values.dtype == torch.float32
    assert torch.equal(values, quantize_fixed_point(x.float(), torch.tensor(1.0), 8, False))
