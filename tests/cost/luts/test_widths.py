"""Widths against what all inputs give, and by hand."""

from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from brevitas_multiquant.cost.luts import (
    accumulator_bits,
    accumulator_range,
    integer_bits,
    largest_accumulator_bits,
    threshold_bits,
)
from brevitas_multiquant.errors import HardwareError

rows = st.lists(st.lists(st.integers(-3, 3), min_size=3, max_size=3), min_size=1, max_size=3)


@given(rows, st.integers(-2, 0), st.integers(1, 3))
def test_ranges_are_those_of_all_inputs(weights, lowest, highest):
    inputs = list(product(range(lowest, highest + 1), repeat=3))
    sums = np.array(weights) @ np.array(inputs).T
    assert accumulator_range(weights, lowest, highest) == (sums.min(), sums.max())


@given(st.integers(-300, 300), st.integers(0, 300))
def test_the_narrowest_integers(lowest, reach):
    highest = lowest + reach
    bits = integer_bits(lowest, highest)

    def holds(width):
        if lowest >= 0:
            return highest < 2**width
        return -(2 ** (width - 1)) <= lowest and highest < 2 ** (width - 1)

    assert holds(bits) and (bits == 1 or not holds(bits - 1))


def test_weights_of_a_convolution_as_a_tensor():
    weight = torch.tensor([[[[1.0, -2.0]]], [[[3.0, 0.0]]]])
    assert accumulator_range(weight, 0, 15) == (-30, 45)
    assert accumulator_bits(weight, 0, 15) == 7


def test_large_sums_are_exact():
    """fp32 would round them."""
    weights = np.full((1, 2**13), 127)
    assert accumulator_range(weights, 0, 255) == (0, 2**13 * 127 * 255)


def test_a_last_layer_gives_whole_bytes():
    assert accumulator_bits([[100]], 0, 15, whole_bytes=True) == 16
    assert accumulator_bits([[100]], 0, 15) == 11


@pytest.mark.parametrize("weight_bits", [2, 3, 8])
@pytest.mark.parametrize("activation_bits", [1, 4])
@pytest.mark.parametrize("fan_in", [1, 9, 64])
def test_types_alone_hold_every_sum(weight_bits, activation_bits, fan_in):
    worst = np.full((1, fan_in), -(2 ** (weight_bits - 1)))
    needed = accumulator_bits(worst, 0, 2**activation_bits - 1)
    # the bound counts the largest activation as 2**bits: of one bit, twice what it is
    slack = 2 if activation_bits == 1 else 1
    bound = largest_accumulator_bits(fan_in, weight_bits, activation_bits)
    assert needed <= bound <= needed + slack


@pytest.mark.parametrize(
    ("table", "source", "bits"),
    [
        ((-30, 46), (7, True), 7),
        ((-64, 63), (7, True), 7),
        ((-64, 64), (7, True), 8),  # never reached
        ((3, 60), (8, True), 7),  # what is signed is compared with what is signed
        ((1, 255), (8, False), 8),
        ((0, 255), (8, False), 8),
        ((1, 127), (8, False), 7),
        ((0, 127), (8, False), 8),  # narrower than its input: -1 has to be there too
        ((-64, 10), (8, True), 8),  # and here -65
    ],
)
def test_thresholds(table, source, bits):
    assert threshold_bits(*table, *source) == bits


def test_fractions_are_no_weights():
    with pytest.raises(HardwareError, match="weights: expected integers, got fractions"):
        accumulator_range([[0.5, 1.0]], 0, 15)
