"""Which bit-widths one stored integer serves, against the quantizer itself."""

from itertools import combinations

import numpy as np
import pytest
import torch

from brevitas_multiquant.core.clip_quantize import quantize_weight
from brevitas_multiquant.core.grids import (
    FAMILIES,
    WEIGHT_FORMATS,
    cascade,
    centered,
    double,
    integer,
    modified,
    odd,
    symmetric,
)
from brevitas_multiquant.core.nesting import follows, integers_of, kept_grid

BITS = range(2, 9)
RANGE = torch.tensor(-0.7), torch.tensor(1.1)


@pytest.mark.parametrize("family", [modified, centered, double, cascade])
@pytest.mark.parametrize("most", BITS)
def test_the_largest_serves_every_smaller_one(family, most):
    """Of weights everywhere in the range, on the edges of bins and outside of it."""
    weights = torch.cat([torch.linspace(-1.0, 1.4, 4001), torch.linspace(*RANGE, 2**most + 1)])
    grids = [family(bits) for bits in BITS if bits <= most]
    kept = kept_grid(grids)
    assert kept == (symmetric(8) if family in (double, cascade) else family(most))
    places = (quantize_weight(weights, *RANGE, kept) - kept.offset) / kept.step
    assert places.min() == 0 and places.max() == kept.levels
    for grid in grids:
        found = integers_of(places.int().numpy(), kept, grid)
        assert np.array_equal(found, quantize_weight(weights, *RANGE, grid).numpy())


@pytest.mark.parametrize("family", [odd, integer, symmetric])
def test_rounding_serves_no_other_bit_width(family):
    for low, high in combinations(BITS, 2):
        assert kept_grid([family(low), family(high)]) is None
        assert not follows(family(low), family(high))


@pytest.mark.parametrize("family", FAMILIES.values())
def test_one_grid_is_kept_as_it_is(family):
    for bits in BITS:
        grid = family(bits)
        kept = kept_grid([grid])
        assert kept == (grid.finer or grid)
        places = np.arange(kept.levels + 1)
        assert set(integers_of(places, kept, grid).tolist()) == set(grid.integers)


def test_places_take_as_many_bits_as_tell_them_apart():
    assert {grid.place_bits for grid in WEIGHT_FORMATS.values()} == {2}
    for family in FAMILIES.values():
        assert [family(bits).place_bits for bits in BITS] == list(BITS)
