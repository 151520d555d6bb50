"""Nested integers as a base and what each higher bit-width adds: Vertical Layering (2212.05326).

A receiver that has the base runs at the fewest bits, and with every further layer at the next
bit-width: the integers at b' bits are ``2**(b' - b) * integers at b bits + layer``. A packed file
has the integers of the most bits, from which all layers follow.

Established from descriptions by others, of which none says how the published files lay out their
layers. Rounding moves a value by half a step either way, so that an enhancement of D bits has
integers from -2**(D-1) to 2**(D-1), and above where the coarser one was clipped: a bit more than
first bits of a truncated integer take (grid ``"centered"``).
"""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from brevitas_multiquant.core.grids import Grid
from brevitas_multiquant.core.nesting import follows, integers_of
from brevitas_multiquant.core.packing import Array
from brevitas_multiquant.errors import BitWidthError


def vertical_layers(integers: Array, grids: Sequence[Grid]) -> list[Array]:
    """The base layer, then the enhancement of each higher bit-width.

    Args:
        integers: of the finest grid, any shape.
        grids: of one family, by ascending bits.

    Raises:
        BitWidthError: grids that do not follow from the finest one.

    Example:
        >>> from brevitas_multiquant.core.grids import cascade
        >>> grids = [cascade(2, stored=4), cascade(3, stored=4), cascade(4, stored=4)]
        >>> [layer.tolist() for layer in vertical_layers(np.array([-7, 3, 6]), grids)]
        [[-2, 1, 1], [0, 0, 1], [1, -1, 0]]
    """
    kept = grids[-1].finer or grids[-1]
    wrong = [str(grid) for grid in grids if not follows(grid, kept)]
    if wrong:
        raise BitWidthError(f"grids: expected those that follow from {kept}, got {wrong}")
    places = (np.asarray(integers, np.int64) - kept.offset) // kept.step
    levels = [integers_of(places, kept, grid) for grid in grids]
    pairs = zip(pairwise(levels), pairwise(grids), strict=True)
    return levels[:1] + [high - _factor(of) * low for (low, high), of in pairs]


def joined(layers: Sequence[Array], grids: Sequence[Grid]) -> Array:
    """The integers at the bit-width of the last layer.

    Args:
        layers: of `vertical_layers`, as many as there are.
        grids: of each of them.

    Example:
        >>> from brevitas_multiquant.core.grids import cascade
        >>> grids = [cascade(2, stored=4), cascade(3, stored=4)]
        >>> joined([np.array([-2, 1]), np.array([0, 1])], grids).tolist()
        [-4, 3]
    """
    value = np.asarray(layers[0], np.int64)
    for layer, of in zip(layers[1:], pairwise(grids), strict=True):
        value = _factor(of) * value + layer
    return value


def _factor(pair: tuple[Grid, Grid]) -> int:
    low, high = pair
    return 2 ** (high.place_bits - low.place_bits)
