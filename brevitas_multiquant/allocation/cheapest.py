"""The cheapest choice that is accurate enough, whatever strategy chooses."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from math import isfinite

from brevitas_multiquant.allocation.accuracy import AccuracyFloor
from brevitas_multiquant.allocation.problem import Problem
from brevitas_multiquant.allocation.solve import Found, Point, pareto

HALVINGS = 5
"""Of the budgets between the least and the most, for a strategy that gives no curve: each of them
has it run once more."""

Choose = Callable[[Problem], Found]
"""A problem -> what a strategy finds within its limits."""


def cheapest(
    problem: Problem, choose: Choose, floor: AccuracyFloor, descends: bool = False
) -> Found:
    """By bisection: accuracy is taken to rise with the cost, and what is given was measured.

    Along the strategy's curve where it gives one, which is phase 2 of Practical mixed precision
    (arXiv:2302.05397); over budgets, each found by the strategy, where it gives none.

    Args:
        problem: what can be chosen; its limits hold too.
        choose: the strategy.
        floor: what has to be kept.
        descends: its curve goes down from the most bits as far as a budget asks, and no further.

    Raises:
        BudgetError: nothing within the limits is accurate enough.
    """
    found = choose(_limited(problem, 0.0) if descends else problem)
    most = problem.uniform()
    points = [point for point in found.curve if problem.fits(point.bits)]
    if problem.fits(most):
        points.append(Point(problem.cost(most)[0], float("-inf"), most))
    elif problem.fits(found.bits):
        points.append(Point(problem.cost(found.bits)[0], float("-inf"), found.bits))
    points = sorted(points, key=lambda one: one.cost)
    floor.require(points[-1].bits, "the most bits within the limits")
    if found.curve:
        return Found(_first(points, floor).bits, tuple(pareto(list(found.curve))))
    return _over_budgets(problem, choose, floor, points[-1])


def _first(points: Sequence[Point], floor: AccuracyFloor) -> Point:
    low, high = -1, len(points) - 1  # the last one holds
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if floor.holds(points[middle].bits) else (middle, high)
    return points[high]


def _over_budgets(problem: Problem, choose: Choose, floor: AccuracyFloor, best: Point) -> Found:
    low, high = _least(problem), best.cost
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        tried = choose(replace(problem, limits=(middle, *problem.limits[1:])))
        cost = problem.cost(tried.bits)[0]
        if floor.holds(tried.bits):
            best, high = Point(cost, 0.0, tried.bits), min(cost, middle)
        else:
            low = middle
    return Found(best.bits)


def _least(problem: Problem) -> float:
    return problem.cost({width: min(of) for width, of in problem.candidates.items()})[0]


def _limited(problem: Problem, share: float) -> Problem:
    """With limits that far between the least possible and what they are."""
    least = problem.cost({width: min(of) for width, of in problem.candidates.items()})
    limits = tuple(
        low + share * (most - low) if isfinite(most) else most
        for low, most in zip(least, problem.limits, strict=True)
    )
    return replace(problem, limits=limits)
