"""A scale, a factor and a whole bias for each channel that round sums as the real line would.

``round(scale * (times * sum + bias))`` has whole numbers ``times`` and ``bias``, so that it cannot
be every line. But sums are whole, too: a threshold may lie anywhere between two of them. What is
wanted is a line that has each threshold between the same two sums.
"""

from typing import NamedTuple

import numpy as np

MOST_THRESHOLDS = 63
"""Finer integers have thresholds between nearly all sums: no line but the real one fits."""

ROUNDING = 2.0**-20
"""Relative, above what fp32 rounds a scale and a product by."""


class Line(NamedTuple):
    """``scale * (times * sum + bias)``, for each channel; ``times`` and ``bias`` are whole.

    ``fits`` where it rounds every sum to the integer of the real line.
    """

    scale: np.ndarray
    times: np.ndarray
    bias: np.ndarray
    fits: np.ndarray


def fitted(
    slope: np.ndarray,
    shift: np.ndarray,
    most_times: np.ndarray,
    largest: np.ndarray,
    ends: tuple[int, int],
) -> Line:
    """For each channel the nearest line that rounds every sum to the integer of the real line.

    Where none does, the one that rounds the fewest sums otherwise.

    Args:
        slope: of the real lines ``slope * sum + shift``, positive (O,).
        shift: of the real lines (O,).
        most_times: how large the factors may be (O,).
        largest: largest magnitude of a sum (O,).
        ends: smallest and largest integer that is rounded to.

    Example:
        >>> sums = np.arange(-20, 21)
        >>> numbers = np.array([0.3]), np.array([0.19]), np.array([9]), np.array([20])
        >>> scale, times, bias, fits = fitted(*numbers, (0, 3))
        >>> rounded = np.rint(scale * (times * sums + bias)).clip(0, 3)
        >>> bool((rounded == np.rint(0.3 * sums + 0.19).clip(0, 3)).all())
        True
    """
    offset = (shift / slope)[:, None]
    times = np.tile(np.arange(1, int(most_times.max()) + 1), 2)
    biases = offset * times
    biases = np.where(np.arange(len(times)) < len(times) // 2, np.floor(biases), np.ceil(biases))
    errors = np.abs(offset - biases / times)
    errors[times > most_times[:, None]] = np.inf
    scales = slope[:, None] / times
    fits = np.zeros(biases.shape, bool)
    thresholds = np.arange(ends[0] + 1, ends[1] + 1) - 0.5
    if 0 < len(thresholds) <= MOST_THRESHOLDS:
        most = largest[:, None]
        reached = np.ceil((thresholds - shift[:, None]) / slope[:, None]).clip(-most, most + 1)
        low, high = _right_scales(thresholds, reached, largest, times, biases)
        fits = low <= high
        moved = _moved(thresholds, reached, largest, scales, times, biases)
        scales = np.where(fits, np.clip(scales, low, high), scales)
        errors = np.where(fits, errors, errors + 1 + moved)  # an error alone is below 1
    rows, best = np.arange(len(slope)), errors.argmin(1)
    return Line(scales[rows, best], times[best], biases[rows, best], fits[rows, best])


def _moved(
    thresholds: np.ndarray,
    reached: np.ndarray,
    largest: np.ndarray,
    scales: np.ndarray,
    times: np.ndarray,
    biases: np.ndarray,
) -> np.ndarray:
    """How many sums are on the other side of a threshold: (channel, factor)."""
    first = np.ceil((thresholds / scales[:, :, None] - biases[:, :, None]) / times[:, None])
    most = largest[:, None, None]
    return np.asarray(np.abs(first.clip(-most, most + 1) - reached[:, None]).sum(2))


def _right_scales(
    thresholds: np.ndarray,
    reached: np.ndarray,
    largest: np.ndarray,
    times: np.ndarray,
    biases: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """The scales from, and to, which all thresholds are right, of each channel and factor.

    Threshold t lies between two sums s and s + 1 where ``scale * below < t <= scale * above`` of
    ``below = times * s + bias`` and ``above = below + times``; ``reached`` is s + 1.
    """
    most = largest[:, None]
    above = times[:, None] * reached[:, None, :] + biases[:, :, None]
    below = above - times[:, None]
    never = (reached > most)[:, None, :]
    always = (reached - 1 < -most)[:, None, :]
    positive = thresholds > 0
    with np.errstate(divide="ignore"):
        of_above, of_below = thresholds / above, thresholds / below
    low = np.where(
        positive,
        np.where(never, 0, np.where(above > 0, of_above, np.inf)),
        np.where(always, 0, np.where(below < 0, of_below, np.inf)),
    )
    high = np.where(
        positive,
        np.where(always | (below <= 0), np.inf, of_below),
        np.where(never | (above >= 0), np.inf, of_above),
    )
    return low.max(2) * (1 + ROUNDING), high.min(2) * (1 - ROUNDING)
