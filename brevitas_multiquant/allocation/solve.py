"""From losses of single bit-widths to a choice within the limits, and the whole curve."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any, NamedTuple

from brevitas_multiquant.allocation import knapsack
from brevitas_multiquant.allocation.problem import Bits, Problem
from brevitas_multiquant.allocation.rounding import round_to_budget, steps_up
from brevitas_multiquant.allocation.sites import Width
from brevitas_multiquant.cost.terms import total_of
from brevitas_multiquant.errors import ConfigError

Losses = Mapping[Width, Mapping[int, float]]
"""Width -> bits -> what is lost with them, all else float: losses add up."""


class Point(NamedTuple):
    """A choice on the way from the fewest bits to the most."""

    cost: float
    loss: float
    bits: Bits


@dataclass(frozen=True)
class Found:
    """What a strategy finds.

    Args:
        bits: of each width.
        curve: choices that no other one on the way beats, by rising cost; empty if the strategy
            gives none.
    """

    bits: Bits
    curve: tuple[Point, ...] = ()


def solve(problem: Problem, losses: Losses, exact: bool = False) -> Found:
    """The least loss within the limits, nearly: a knapsack where sites cost separately.

    Then the best steps that still fit. Where costs of sites depend on each other, as LUTs of
    thresholds on the sums before them, steps up by the loss that they save per cost.

    Args:
        problem: what can be chosen.
        losses: of every candidate.
        exact: by branch and bound.

    Raises:
        BudgetError: nothing keeps to the limits.
        ConfigError: exactly, where costs of sites depend on each other.
    """
    if exact and not _is_separate(problem):
        raise ConfigError(
            f"exact: expected a budget whose sites cost separately, as of BitOPs or bytes, got "
            f"{problem.unit}: leave it out"
        )
    falling = {width: monotone(losses[width]) for width in problem.candidates}

    def gain(width: Any, low: int, high: int) -> float:
        # steps that save nothing come last, in the order of their cost
        return max(falling[width][low] - falling[width][high], 1e-30)

    path = steps_up(problem.candidates, problem.terms, gain)
    points = [Point(cost[0], _loss(falling, chosen), chosen) for cost, chosen in path]
    filled = []
    for start in _starts(problem, falling, exact, [chosen for _, chosen in path]):
        as_floats = {width: float(bits) for width, bits in start.items()}
        arguments = (problem.candidates, problem.terms, problem.limits, gain)
        filled.append(round_to_budget(as_floats, *arguments))
    bits = min(filled, key=lambda chosen: _loss(falling, chosen))
    return Found(bits, tuple(pareto(points)))


def _starts(problem: Problem, losses: Losses, exact: bool, path: list[Bits]) -> Iterator[Bits]:
    """Choices to go on from: where costs do not rise with bits, one alone may lead nowhere."""
    if _is_separate(problem):
        yield _by_knapsack(problem, losses, _blocks(problem), exact)
        return
    fitting = [chosen for chosen in path if problem.fits(chosen)]
    if fitting:
        yield min(fitting, key=lambda chosen: _loss(losses, chosen))
    uniform = [one for one in problem.uniforms().values() if problem.fits(one)]
    yield from uniform
    if not fitting and not uniform:
        yield path[0]


def _is_separate(problem: Problem) -> bool:
    """Whether costs depend on weights and activations of one site at a time."""
    return len(problem.limits) == 1 and all(len(block) <= 2 for block in _blocks(problem))


def monotone(losses: Mapping[int, float]) -> dict[int, float]:
    """No less loss with fewer bits: what is measured otherwise is noise."""
    falling: dict[int, float] = {}
    most = 0.0
    for bits in sorted(losses, reverse=True):
        most = falling[bits] = max(most, losses[bits])
    return falling


def _loss(losses: Losses, chosen: Bits) -> float:
    return sum(losses[width][bits] for width, bits in chosen.items())


def pareto(points: list[Point]) -> list[Point]:
    """Those that no cheaper one equals in loss, by rising cost.

    Example:
        >>> [p.cost for p in pareto([Point(2, 1, {}), Point(1, 3, {}), Point(3, 1, {})])]
        [1, 2]
    """
    kept: list[Point] = []
    for point in sorted(points, key=lambda one: one[:2]):
        if not kept or point.loss < kept[-1].loss:
            kept.append(point)
    return kept


def _blocks(problem: Problem) -> list[tuple[Width, ...]]:
    """Widths whose costs depend on each other, together."""
    block_of = {width: {width: None} for width in problem.candidates}
    for term in problem.terms:
        merged: dict[Width, None] = {}
        for width in term.widths:
            merged |= block_of[width]  # type: ignore[index]
        for width in merged:
            block_of[width] = merged
    unique = {id(block): tuple(block) for block in block_of.values()}
    return list(unique.values())


def _by_knapsack(
    problem: Problem, losses: Losses, blocks: list[tuple[Width, ...]], exact: bool
) -> dict[Width, int]:
    block_of = {width: index for index, block in enumerate(blocks) for width in block}
    own: list[list[Any]] = [[] for _ in blocks]
    fixed = 0.0
    for term in problem.terms:
        if term.widths:
            own[block_of[term.widths[0]]].append(term)  # type: ignore[index]
        else:
            fixed += term({})
    choices = [
        [dict(zip(block, b, strict=True)) for b in product(*(problem.candidates[w] for w in block))]
        for block in blocks
    ]
    options = [
        [((total_of(terms, one) or (0.0,))[0], _loss(losses, one)) for one in of]
        for terms, of in zip(own, choices, strict=True)
    ]
    pick = knapsack.exactly if exact else knapsack.by_hull
    taken = pick(options, problem.limits[0] - fixed)
    found: dict[Width, int] = {}
    for of, one in zip(choices, taken, strict=True):
        found |= of[one]
    return found
