"""What the methods' papers make of weights and activations, for autograd: to be read, not fast.

Values, not codes; the rounding is straight through, the clip passes a gradient where it clips
nothing. Weights lie between -1 and 1, so that a step or a range is divided out; a norm behind the
layer makes that the same network (`tests/quant/test_range_kinds.py`).
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tests.reference import activation_values, clip, round_straight_through


def _floor_straight_through(x: Tensor, highest: int) -> Tensor:
    return x.detach().floor().clamp(max=highest) + (x - x.detach())


def original(x: Tensor, bits: int, stored: int) -> Tensor:
    """AdaBits, Any-Precision: the nearest of 2**b values from -1 to 1."""
    levels = 2**bits - 1
    return 2 * round_straight_through(levels * x) / levels - 1


def modified(x: Tensor, bits: int, stored: int) -> Tensor:
    """AdaBits: the lower end of one of 2**b bins."""
    return 2 * _floor_straight_through(2**bits * x, 2**bits - 1) / 2**bits - 1


def centered(x: Tensor, bits: int, stored: int) -> Tensor:
    """AdaBits: the middle of one of 2**b bins."""
    return 2 * (_floor_straight_through(2**bits * x, 2**bits - 1) + 0.5) / 2**bits - 1


def double(x: Tensor, bits: int, stored: int) -> Tensor:
    """Double Rounding: W_h to the nearest of ``stored`` bits, W_l = W_h / 2**D to the nearest."""
    largest, shift = 2 ** (stored - 1) - 1, 2 ** (stored - bits)
    high = round_straight_through((2 * x - 1) * largest)
    low = high / shift
    rounded = low.detach().round().clamp(max=2 ** (bits - 1) - 1)
    return (rounded + (low - low.detach())) * shift / largest


def cascade(x: Tensor, bits: int, stored: int) -> Tensor:
    """Vertical Layering: each bit-width is half of the next higher one, to the nearest."""
    largest = 2 ** (stored - 1) - 1
    value = (2 * x - 1) * largest
    integer = value.detach().round()
    for fewer in reversed(range(bits, stored)):
        integer = (integer / 2).round().clamp(max=2 ** (fewer - 1) - 1)
    shift = 2 ** (stored - bits)
    return (integer + (value - value.detach()) / shift) * shift / largest


GRIDS: dict[str, Callable[[Tensor, int, int], Tensor]] = {
    "original": original,
    "modified": modified,
    "centered": centered,
    "double": double,
    "cascade": cascade,
}


def weight_values(
    weight: Tensor, kind: str, numbers: Any, grid: str, bits: int, stored: int
) -> Tensor:
    """The values of weights.

    Args:
        weight: w.
        kind: name of a range.
        numbers: what it trains: (l, u), (s,) or nothing.
        grid: name of `GRIDS`.
        bits: b.
        stored: the most bits.
    """
    if kind == "learned":
        lower, upper = numbers
        return GRIDS[grid](clip((weight - lower) / (upper - lower)), bits, stored)
    if kind == "step":
        (step,), largest = numbers, 2 ** (stored - 1) - 1
        place = torch.where(weight < -step * largest, -largest, weight / step)
        place = torch.where(weight > step * largest, largest, place)
        return GRIDS[grid]((place / largest + 1) / 2, bits, stored)
    tanh = torch.tanh(weight)
    values = GRIDS[grid](tanh / (2 * tanh.abs().max()) + 0.5, bits, stored)
    return values * weight.detach().abs().mean() if kind == "tanh_times_mean" else values


def activation_values_of(x: Tensor, kind: str, numbers: Any, bits: int, own: int) -> Tensor:
    """The values of activations between 0 and 1.

    Args:
        x: any.
        kind: name of a range.
        numbers: (l, u), or (l, s), or nothing.
        bits: at which the range was trained.
        own: bits of the values.
    """
    if kind == "unit":
        return round_straight_through((2**own - 1) * clip(x)) / (2**own - 1)
    lower, upper = numbers
    if kind == "step":
        upper = lower + upper * (2**bits - 1)
    return activation_values(x, lower, upper, own)
