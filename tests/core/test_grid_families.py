"""Grids of any bit-width: their numbers by hand, and that fewer bits are the first of more."""

from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from brevitas_multiquant.core.clip_quantize import quantize_weight
from brevitas_multiquant.core.grids import (
    FAMILIES,
    ODD,
    WEIGHT_FORMATS,
    Grid,
    WeightFormat,
    centered,
    double,
    integer,
    modified,
    odd,
    symmetric,
)
from brevitas_multiquant.errors import BitWidthError

EVERY = [(name, bits) for name in FAMILIES for bits in range(2, 9)]
PAIRS = [(few, many) for many in range(2, 9) for few in range(1, many)]


def test_the_formats_of_branches_are_rows_of_families():
    assert odd(2) == ODD == WEIGHT_FORMATS["odd"]
    assert all(isinstance(form, WeightFormat) for form in WEIGHT_FORMATS.values())
    for name, same in (("int2", integer(2)), ("ternary", symmetric(2))):
        form = WEIGHT_FORMATS[name]
        assert form.integers == same.integers and form.numbers == same.numbers


@pytest.mark.parametrize(
    ("grid", "integers", "divisor", "span", "integer_bits", "is_narrow", "datatype"),
    [
        (odd(3), (-7, -5, -3, -1, 1, 3, 5, 7), 7, (-1, 1), 4, True, "INT4"),
        (integer(3), tuple(range(-4, 4)), 4, (-1, 0.75), 3, False, "INT3"),
        (symmetric(3), tuple(range(-3, 4)), 3, (-1, 1), 3, True, "INT3"),
        (modified(3), tuple(range(-4, 4)), 4, (-1, 1), 3, False, "INT3"),
        (centered(2), (-3, -1, 1, 3), 4, (-1, 1), 3, True, "INT3"),
        (double(2), (-2, -1, 0, 1), 127 / 64, (-1, 1), 2, False, "INT2"),
        (double(8), tuple(range(-127, 128)), 127, (-1, 1), 8, True, "INT8"),
    ],
)
def test_the_table(grid, integers, divisor, span, integer_bits, is_narrow, datatype):
    assert (grid.integers, grid.divisor, grid.span) == (integers, divisor, span)
    assert (grid.integer_bits, grid.is_narrow) == (integer_bits, is_narrow)
    assert grid.datatype == datatype


@pytest.mark.parametrize(("name", "bits"), EVERY)
def test_what_holds_for_every_grid(name, bits):
    grid = FAMILIES[name](bits)
    assert grid.integers[0] == grid.offset and grid.integers[-1] == grid.highest
    assert len(grid.integers) == grid.levels + 1 <= 2**bits
    assert grid.is_symmetric == (set(grid.integers) == {-i for i in grid.integers})
    lowest, highest = (
        Fraction(end) / Fraction(grid.divisor) for end in grid.integers[:: grid.levels]
    )
    assert max(-lowest, highest) <= Fraction(128, 127)  # 1, but for integers rounded twice
    largest = FAMILIES[name](8)
    assert (grid.step, grid.rounding, grid.finer) == (largest.step, largest.rounding, largest.finer)


@pytest.mark.parametrize("bits", range(2, 9))
def test_middles_of_bins_have_mean_zero_and_ends_of_bins_have_not(bits):
    mean = lambda grid: Fraction(sum(grid.integers), len(grid.integers) * grid.divisor)  # noqa: E731
    assert mean(centered(bits)) == 0
    assert mean(modified(bits)) == -Fraction(1, 2**bits)


def places(values, grid, lower=-1.0, upper=1.0):
    bounds = (torch.tensor(bound, dtype=values.dtype) for bound in (lower, upper))
    codes = quantize_weight(values, *bounds, grid)
    return ((codes - grid.offset) / grid.step).long()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("family", [modified, centered])
def test_fewer_bits_are_the_first_bits_of_more(family, dtype):
    """All edges of bins, values beside them, both sides outside, and random ones; any range."""
    generator = torch.Generator().manual_seed(0)
    edges = (torch.arange(-10, 267) / 128 - 1).to(dtype)
    beside = [torch.nextafter(edges, edges + sign) for sign in (-1, 1)]
    values = torch.cat([edges, *beside, 1.5 * torch.randn(20000, generator=generator, dtype=dtype)])
    for lower, upper in ((-1.0, 1.0), (-0.3, 1.7), (-3e-5, 2e-5)):
        scaled = (values + 1) / 2 * (upper - lower) + lower
        finest = {bits: places(scaled, family(bits), lower, upper) for bits in range(1, 9)}
        assert finest[8].unique().numel() == 256
        for few, many in PAIRS:
            assert torch.equal(finest[few], finest[many] >> (many - few))


@given(
    st.lists(st.floats(-2, 2, width=32), min_size=1, max_size=30),
    st.sampled_from([modified, centered]),
    st.sampled_from(PAIRS),
)
def test_nesting_of_any_values(values, family, pair):
    few, many = pair
    x = torch.tensor(values)
    finer = places(x, family(many), -0.9, 1.1)
    assert torch.equal(places(x, family(few), -0.9, 1.1), finer >> (many - few))


@pytest.mark.parametrize("bits", range(2, 9))
def test_rounding_twice_is_done_with_the_stored_integers(bits):
    """Python rounds half to even, as the formula does."""
    x = torch.linspace(-1.2, 1.2, 3001, dtype=torch.float64)
    bounds = torch.tensor(-1.0).double(), torch.tensor(1.0).double()
    stored = quantize_weight(x, *bounds, symmetric(8)).tolist()
    codes = quantize_weight(x, *bounds, double(bits))
    top = 127 if bits == 8 else 2 ** (bits - 1) - 1
    expected = [min(round(Fraction(int(i), 2 ** (8 - bits))), top) for i in stored]
    assert codes.tolist() == expected
    assert sorted(set(expected)) == list(double(bits).integers)
    if bits in (4, 6):
        once = (x.clamp(-1, 1) * 127 / 2 ** (8 - bits)).round().clamp(max=top)
        assert not torch.equal(codes, once)


@pytest.mark.parametrize("family", FAMILIES.values())
@pytest.mark.parametrize("bits", [0, 17, 2.0, True, "4"])
def test_a_bit_width_that_is_none(family, bits):
    with pytest.raises(BitWidthError, match=r"grid: expected [12] to 16 bits, got"):
        family(bits)


def test_more_bits_than_are_stored():
    with pytest.raises(BitWidthError, match="double: expected at most the 4 bits stored, got 6"):
        double(6, stored=4)


def test_a_long_grid_is_told_by_its_ends():
    assert str(integer(8)) == "int8 (-128, -127, ..., 127)"
    assert str(Grid("mine", 3, -2)) == "mine (-2, -1, 0, 1)"
