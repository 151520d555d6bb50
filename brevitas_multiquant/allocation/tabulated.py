"""Costs that are known at whole bits alone, between them: tables, linear along every bit-width."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import product
from typing import Any

import torch
from torch import Tensor

from brevitas_multiquant.cost.terms import Term, as_resources


class Table:
    """A cost at every pair, or triple, of candidates; multilinear between neighbouring ones.

    Args:
        of: whole bits -> the cost, a number or one for each resource.
        axes: candidates of each bit-width, ascending.

    Example:
        >>> table = Table(lambda weight, read: 10 * weight + 2**read, [(2, 4), (2, 3, 4)])
        >>> table(4, 3), table(3, 3.5)
        ((48.0,), (42.0,))
    """

    def __init__(self, of: Any, axes: Sequence[Sequence[int]]) -> None:
        self.axes = tuple(tuple(axis) for axis in axes)
        values = [as_resources(of(*bits)) for bits in product(*self.axes)]
        rows = torch.tensor(values, dtype=torch.float64)
        self.values = rows.view(*(len(axis) for axis in self.axes), -1)

    def __call__(self, *bits: Any) -> tuple[Any, ...]:
        """Costs at real-valued bits: numbers of numbers, differentiable tensors of tensors."""
        tensors = [one for one in bits if isinstance(one, Tensor)]
        found = self.values.to(tensors[0]) if tensors else self.values
        for axis, one in zip(self.axes, bits, strict=True):
            found = torch.tensordot(_hats(axis, torch.as_tensor(one).to(found)), found, dims=1)
        return tuple(found.unbind() if tensors else found.tolist())


def _hats(axis: Sequence[int], bits: Tensor) -> Tensor:
    """How much of each candidate is in a real-valued bit-width: they add up to 1."""
    points = bits.new_tensor(axis)
    if len(axis) == 1:
        return torch.ones_like(points)
    low, high = points[:-1], points[1:]
    # of the way to the next one; at a candidate the slope is its right one, at the last its left
    inside = (bits >= low) & ((bits < high) | (high == points[-1]) & (bits == high))
    rise = torch.where(inside, (bits - low) / (high - low), (bits >= high).to(bits))
    one = rise.new_ones(1)
    return torch.cat([one, rise]) - torch.cat([rise, 0 * one])


def tabulated(term: Term, candidates: Mapping[Any, Sequence[int]]) -> Term:
    """A term with a `Table` of its candidates in place of its function.

    Args:
        term: of any bit-widths.
        candidates: of each.
    """
    return replace(term, of=Table(term.of, [candidates[width] for width in term.widths]))
