"""What a network costs, as every unit of a budget counts it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from brevitas_multiquant.core.precision import Assignment
from brevitas_multiquant.cost.terms import Term

Choices = Mapping[str, Sequence[int]]
"""Candidates of weights and of activations."""


@dataclass(frozen=True)
class Counted:
    """What a network costs, of the bits that can be chosen.

    Args:
        terms: the cost.
        bits: the network's, where the cost depends on them.
        uniform: bits -> the cost of the network of these everywhere, where that is known better.
        of: an assignment -> the cost of the network that has it, where terms are not exact.
        check: (terms, candidates of each width) -> None, or an error for what they cannot count.
    """

    terms: Sequence[Term]
    bits: int | None = None
    uniform: Mapping[int, float] = field(default_factory=dict)
    of: Callable[[Assignment], tuple[float, ...]] | None = None
    check: Callable[[Sequence[Term], Mapping[Any, Sequence[int]]], None] | None = None
