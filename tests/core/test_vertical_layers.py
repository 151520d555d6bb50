"""Base and enhancements, against halving one integer after another."""

import numpy as np
import pytest
import torch

from brevitas_multiquant.core.clip_quantize import quantize_weight
from brevitas_multiquant.core.grids import Numbers, cascade, centered, odd, symmetric
from brevitas_multiquant.core.nesting import integers_of
from brevitas_multiquant.core.vertical_layers import joined, vertical_layers
from brevitas_multiquant.errors import BitWidthError


def by_hand(integer: int, bits: int, stored: int) -> int:
    """Half, to the nearest, to even in the middle, at most the largest integer."""
    for fewer in range(stored - 1, bits - 1, -1):
        integer = min(round(integer / 2), 2 ** (fewer - 1) - 1)
    return integer


@pytest.mark.parametrize("stored", [3, 4, 8])
def test_every_bit_width_of_every_integer(stored: int) -> None:
    every = np.arange(-(2 ** (stored - 1)) + 1, 2 ** (stored - 1))
    ladder = [cascade(bits, stored) for bits in range(2, stored + 1)]
    layers = vertical_layers(every, ladder)
    for count, grid in enumerate(ladder, start=1):
        expected = [by_hand(int(one), grid.place_bits, stored) for one in every]
        assert joined(layers[:count], ladder[:count]).tolist() == expected
        assert integers_of(every - symmetric(stored).offset, symmetric(stored), grid).tolist() == (
            expected
        )
        # the quantizer: weights that are these integers
        weights = torch.tensor(every, dtype=torch.float64)
        ends = torch.tensor(float(every[0])).double(), torch.tensor(float(every[-1])).double()
        assert quantize_weight(weights, *ends, grid).tolist() == expected
        numbers = Numbers(*torch.tensor(grid.numbers))  # as a graph of any bit-width has them
        found = quantize_weight(weights, *ends, ladder[-1], numbers._replace(levels=2 * -every[0]))
        assert found.tolist() == expected
    assert all(abs(layer).max() <= 1 for layer in layers[1:])


def test_other_families() -> None:
    grids = [centered(2), centered(4), centered(8)]
    integers = np.arange(-255, 256, 2)
    layers = vertical_layers(integers, grids)
    assert joined(layers, grids).tolist() == integers.tolist()
    with pytest.raises(BitWidthError, match="grids: expected those that follow from odd"):
        vertical_layers(integers, [odd(2), odd(8)])
