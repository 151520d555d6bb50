"""Means and maxima over positions, in the many ways that networks spell them."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from brevitas_multiquant.export.finn.lower.builder import Builder
from brevitas_multiquant.export.finn.lower.geometry import Pair, Window
from brevitas_multiquant.export.finn.lower.layout import Laid, lay, settle
from brevitas_multiquant.export.finn.lower.pools import window_sums
from brevitas_multiquant.export.finn.lower.registry import apply_rule
from brevitas_multiquant.export.finn.lower.values import Value

MEANS = {torch.mean, "mean"}
LARGEST = {torch.amax, "amax"}
LARGEST_WITH_PLACES = {torch.max, "max"}


class Largest(NamedTuple):
    """What ``x.max(dim)`` gives; nobody has the places."""

    values: Value
    indices: None = None


class _Mean(nn.Module):
    """Torch's mean of a window."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, h, w) to (N, C, 1, 1)."""
        return x.mean((2, 3), keepdim=True)


def reduced(
    builder: Builder,
    where: str,
    target: Any,
    tensor: Value | Laid,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
) -> Value | Largest | None:
    """The mean or the largest over positions; None for any other call.

    Args:
        builder: the network so far.
        where: module path.
        target: what is called.
        tensor: its first argument.
        args: those behind it.
        kwargs: those by name.
    """
    if target not in MEANS | LARGEST | LARGEST_WITH_PLACES:
        return None
    named = dict(zip(("dim", "keepdim"), args, strict=False)) | dict(kwargs)
    rank = lay(tensor).places.dim()
    axes = _axes(named.get("dim"), rank)
    if axes is None:
        return None
    value = settle(builder, where, tensor)
    if not value.known:
        return value
    kernel = _kernel(axes, rank, value)
    if target in MEANS:
        value = _mean(builder, where, kernel, value)
    else:
        value = apply_rule(builder, where, nn.MaxPool2d(kernel), [value])
    if not named.get("keepdim", False):
        value = value.in_rank(rank - len(axes))
    return Largest(value) if target in LARGEST_WITH_PLACES else value


def _axes(dims: Any, rank: int) -> set[int] | None:
    """Axes of positions that a call reduces; None if it reduces others, or nothing."""
    given = [dims] if isinstance(dims, int) else dims
    if not isinstance(given, (tuple, list)) or not all(isinstance(dim, int) for dim in given):
        return None
    axes = {dim % rank for dim in given}
    return axes if axes and min(axes) >= 2 else None


def _kernel(axes: set[int], rank: int, value: Value) -> Pair:
    """Height and width of what is reduced; (N, C, L) is a map, line after line."""
    _, height, width = value.shape
    if rank == 3:
        return height, width
    return height if 2 in axes else 1, width if 3 in axes else 1


def _mean(builder: Builder, where: str, kernel: Pair, value: Value) -> Value:
    if kernel == value.shape[1:]:
        return apply_rule(builder, where, nn.AdaptiveAvgPool2d(1), [value])
    if kernel == (1, 1):
        return value
    return window_sums(builder, where, _Mean(), Window(kernel, kernel), value)
