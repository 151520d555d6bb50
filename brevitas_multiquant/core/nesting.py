"""Which grids a weight's one stored integer serves: those of fewer bits follow from it.

Equal bins nest: the place in a coarser grid is the first bits of the place in a finer one. Integers
that are divided by a power of two and rounded again follow from those of the grid that they were
rounded to first. Grids of other families do not follow from each other: the nearest of 4 values is
not told by the nearest of 16.
"""

from collections.abc import Sequence

import numpy as np

from brevitas_multiquant.core.grids import Grid
from brevitas_multiquant.core.packing import Array


def kept_grid(grids: Sequence[Grid]) -> Grid | None:
    """The grid whose integers are all that has to be kept for every one of ``grids``.

    Args:
        grids: those at which a layer runs.

    Returns:
        None where some do not follow from the finest: then the float weights have to be kept.

    Example:
        >>> from brevitas_multiquant.core.grids import centered, double, odd
        >>> print(kept_grid([centered(2), centered(4)]))
        centered (-15, -13, ..., 15)
        >>> print(kept_grid([double(2), double(4)]))
        symmetric8 (-127, -126, ..., 127)
        >>> print(kept_grid([odd(2), odd(4)]))
        None
    """
    finest = max(grids, key=lambda grid: grid.levels)
    kept = finest.finer or finest
    return kept if all(follows(grid, kept) for grid in grids) else None


def follows(grid: Grid, kept: Grid) -> bool:
    """Whether the integers of a grid are known where those of another one are.

    Example:
        >>> from brevitas_multiquant.core.grids import centered, odd
        >>> follows(centered(2), centered(8)), follows(odd(2), odd(8))
        (True, False)
    """
    same_bins = grid.rounding == kept.rounding == "floor" and grid.levels <= kept.levels
    return grid == kept or grid.finer == kept or same_bins


def halvings(integers: Array, bits: int, fewest: int) -> list[Array]:
    """Integers at each bit-width from ``bits`` down, every one rounded from the one before.

    Args:
        integers: of two's complement, of ``bits`` bits.
        bits: at which they are.
        fewest: where it ends.

    Example:
        >>> [level.tolist() for level in halvings(np.array([-7, 3, 7]), 4, 2)]
        [[-7, 3, 7], [-4, 2, 3], [-2, 1, 1]]
    """
    levels = [np.asarray(integers, np.int64)]
    for fewer in range(bits - 1, fewest - 1, -1):
        half = np.rint(levels[-1] / 2)  # exact: half to even
        levels.append(np.minimum(half, 2 ** (fewer - 1) - 1).astype(np.int64))
    return levels


def integers_of(places: Array, kept: Grid, grid: Grid) -> Array:
    """Integers of a grid, given the places of the weights in the one that is kept.

    Args:
        places: whole numbers from 0 to the ``levels`` of ``kept``.
        kept: of `kept_grid`.
        grid: one that follows from it.

    Example:
        >>> from brevitas_multiquant.core.grids import centered, double, symmetric
        >>> integers_of(np.array([0, 7, 15]), centered(4), centered(2)).tolist()
        [-3, -1, 3]
        >>> integers_of(np.array([0, 95, 254]), symmetric(8), double(2)).tolist()
        [-2, 0, 1]
    """
    places = np.asarray(places, np.int64)
    if grid.finer == kept:
        integers = kept.step * places + kept.offset
        if grid.halves:
            return halvings(integers, kept.place_bits, grid.place_bits)[-1]
        exact = integers / grid.shift  # a power of two: nothing is lost
        return np.minimum(np.rint(exact), grid.highest).astype(np.int64)
    if grid != kept:
        places = places >> (kept.place_bits - grid.place_bits)
    return grid.step * places + grid.offset
