"""Slow oracles, written from the paper's formulas and from the layout's definition, not from the
package: everything here is meant to be read, nothing to be fast.
"""

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor


def clip(x: Tensor) -> Tensor:
    """clip(x, 0, 1) whose autograd gradient is 1 on [0, 1], bounds included."""
    zero, one = torch.zeros_like(x), torch.ones_like(x)
    return torch.where(x < 0, zero, torch.where(x > 1, one, x))


def round_straight_through(x: Tensor) -> Tensor:
    """round(x) with gradient 1; x - x.detach() is exactly 0, so the value is exactly round(x)."""
    return x.detach().round() + (x - x.detach())


def activation_values(x: Tensor, lower: Tensor, upper: Tensor, bits: int) -> Tensor:
    """Eqs. 1 to 3 for activations: levels 0, 1 / (2**b - 1), ..., 1."""
    levels = 2**bits - 1
    normalised = clip((x - lower) / (upper - lower))
    return round_straight_through(levels * normalised) / levels


def weight_values(weight: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
    """Eqs. 1 to 3 for 2-bit weights: levels -1, -1/3, 1/3, 1."""
    q = activation_values(weight, lower, upper, 2)
    return 2 * (q - 0.5)


def weight_values_among(
    weight: Tensor, lower: Tensor, upper: Tensor, levels: Sequence[float]
) -> Tensor:
    """Evenly spaced real levels, the first at l and the last at u."""
    count, (lowest, *_, highest) = len(levels) - 1, levels
    q = round_straight_through(count * clip((weight - lower) / (upper - lower)))
    return lowest + (highest - lowest) * (q / count)


def conv2d_integers(
    codes: Tensor, weight_codes: Tensor, stride: int = 1, padding: int = 0, groups: int = 1
) -> Tensor:
    """A convolution of integers in int64: windows cut out one by one, then a matrix product.

    Args:
        codes: integers (N, C, H, W).
        weight_codes: integers (O, C / groups, K, K).
        stride, padding, groups: as in ``torch.nn.functional.conv2d``.
    """
    x = codes.to(torch.int64)
    w = weight_codes.to(torch.int64)
    n, channels, height, width = x.shape
    padded = torch.zeros(n, channels, height + 2 * padding, width + 2 * padding, dtype=torch.int64)
    padded[:, :, padding : padding + height, padding : padding + width] = x
    outputs, inputs, kernel, _ = w.shape
    rows = (padded.shape[2] - kernel) // stride + 1
    columns = (padded.shape[3] - kernel) // stride + 1
    result = torch.empty(n, outputs, rows, columns, dtype=torch.int64)
    per_group = outputs // groups
    for row, column in itertools.product(range(rows), range(columns)):
        top, left = row * stride, column * stride
        window = padded[:, :, top : top + kernel, left : left + kernel]
        for group in range(groups):
            part = window[:, group * inputs : (group + 1) * inputs].reshape(n, -1)
            filters = w[group * per_group : (group + 1) * per_group].reshape(per_group, -1)
            result[:, group * per_group : (group + 1) * per_group, row, column] = part @ filters.T
    return result


def branch_loads(selection: dict[int, tuple[int, ...]], branches: int) -> list[float]:
    """Activation error that each branch carries: 2**(-2b) for each bit-width b that runs it."""
    return [
        sum(2.0 ** (-2 * bit) for bit, chosen in selection.items() if branch in chosen)
        for branch in range(branches)
    ]


def smallest_spread(bits: Sequence[int]) -> float:
    """The least possible difference between the heaviest and the lightest branch.

    By trying every assignment; those that differ only in the names of branches are tried once.
    """
    branches = math.ceil(max(bits) / 2)
    reached = {(0.0,) * branches}
    for bit in bits:
        reached = {
            tuple(sorted(load + 2.0 ** (-2 * bit) * (b in chosen) for b, load in enumerate(loads)))
            for loads in reached
            for chosen in itertools.combinations(range(branches), math.ceil(bit / 2))
        }
    return min(loads[-1] - loads[0] for loads in reached)


def pack_naive(values: Sequence[int], bits: int) -> bytes:
    """The documented layout as one big integer: value i is shifted up by i * bits."""
    stream = sum(value << (index * bits) for index, value in enumerate(values))
    return stream.to_bytes(-(-len(values) * bits // 8), "little")
