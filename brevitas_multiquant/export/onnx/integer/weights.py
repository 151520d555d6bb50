"""Weights of one byte: all factors of a layer in one scale for each channel, and int32 biases."""

from dataclasses import dataclass

import numpy as np

from brevitas_multiquant.export.onnx.integer.processors import PAIR_SUMS
from brevitas_multiquant.export.onnx.integer.steps import Line, fitted
from brevitas_multiquant.export.onnx.integer.values import Product

SIGNED = 127
FINEST_SUM = 2**30
"""Sums and biases stay below it, and so their sum below what int32 holds."""


@dataclass(frozen=True)
class Weights:
    """What a layer of the file multiplies and adds.

    Args:
        integers: as they are stored.
        dtype: int8, or uint8 where sums of two products could pass 16 bits.
        zero_point: the stored integer that stands for 0.
        scale: of each output channel; negative where its weights, turned over, are no bytes.
        bias: of each output channel, in steps of ``scale``.
        times: what the integers are multiplied with, for each output channel; negative where they
            are turned over.
        room: what the integers of every channel could be multiplied with, for a finer bias.
        exact: whether every sum is rounded as if the bias were real.
    """

    integers: np.ndarray
    dtype: type
    zero_point: int
    scale: np.ndarray
    bias: np.ndarray
    times: np.ndarray
    room: int
    exact: bool


def folded(
    product: Product,
    scale: np.ndarray,
    shift: np.ndarray | None,
    ends: tuple[int, int] | None,
    pair_sum: int = PAIR_SUMS["any"],
) -> Weights:
    """Weights and biases that give ``scale * product + shift``.

    A negative scale turns a channel's weights over. Small integers are multiplied by a whole
    number, and the scale divided by it, which makes the steps of the bias finer.

    Args:
        product: of integers by integers.
        scale: of each output channel (O,).
        shift: of each output channel (O,); None: there is none.
        ends: smallest and largest integer that it is rounded to; None where it is not.
        pair_sum: the largest sum of two products that is exact, of `PAIR_SUMS`.
    """
    sign = np.where(scale < 0, -1, 1)
    rows = product.weight * sign.reshape(-1, *(1,) * (product.weight.ndim - 1))
    rows = np.where(_column(scale, rows) == 0, 0, rows)
    largest_byte = product.read.highest + product.read.zero_point
    magnitudes = np.abs(rows).reshape(len(rows), -1)
    safe = min(SIGNED, pair_sum // (2 * max(largest_byte, 1)))
    fits = magnitudes.max() <= safe
    sums = magnitudes.sum(1) * largest_byte
    real = np.where(scale == 0, _STEP_OF_NOTHING, np.abs(scale))
    most = _most_times(
        magnitudes, safe if fits else SIGNED, sums, None if shift is None else shift / real
    )
    if shift is None or ends is None:
        line = Line(real / most, most, np.zeros_like(most), np.ones(len(most), bool))
    else:
        line = fitted(real, shift, most, sums, ends)
    integers, turned_back = rows * _column(line.times, rows), np.ones_like(sign)
    if integers.max() > SIGNED:  # -128, turned over
        turned_back = np.where(integers.reshape(len(rows), -1).max(1) > SIGNED, -1, 1)
        integers = integers * _column(turned_back, rows)
    zero = 0 if fits else 128
    return Weights(
        integers=integers + zero,
        dtype=np.int8 if fits else np.uint8,
        zero_point=zero,
        scale=line.scale * turned_back,
        bias=(line.bias * turned_back).clip(-FINEST_SUM, FINEST_SUM).astype(np.int32),
        times=line.times * sign * turned_back,
        room=int(most.min()),
        exact=bool(line.fits.all()),
    )


_STEP_OF_NOTHING = 2.0**-16
"""Of a channel whose scale is 0: its bias is all that it gives."""


def _most_times(
    magnitudes: np.ndarray, most: int, sums: np.ndarray, offset: np.ndarray | None
) -> np.ndarray:
    """For each channel the largest whole number that its weights may be multiplied with."""
    times = most // np.maximum(magnitudes.max(1), 1)
    reach = sums if offset is None else np.maximum(sums, np.abs(offset))
    return np.maximum(1, np.minimum(times, FINEST_SUM // np.maximum(reach, 1))).astype(np.int64)


def _column(numbers: np.ndarray, rows: np.ndarray) -> np.ndarray:
    return numbers.reshape(-1, *(1,) * (rows.ndim - 1))
