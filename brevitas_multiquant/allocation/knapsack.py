"""One option of each group, at the least loss within a budget: a multiple-choice knapsack."""

from collections.abc import Sequence
from itertools import chain, pairwise
from typing import Any

import numpy as np

from brevitas_multiquant.allocation.rounding import ROUNDING
from brevitas_multiquant.core.optional_packages import optional_package
from brevitas_multiquant.errors import BudgetError

Option = tuple[float, float]
"""(cost, loss)."""


def by_hull(groups: Sequence[Sequence[Option]], budget: float) -> list[int]:
    """Nearly the least loss, in a sort: options on the lower convex hull, by loss saved per cost.

    Within one step of one group of the optimum (Sinha and Zoltners, 1979): of its steps, in the
    order of a falling Lagrange multiplier, all but the last that fits are those of the optimum of
    the relaxed problem.

    Args:
        groups: the options of each.
        budget: most that the options may cost together.

    Returns:
        Of each group, which option.

    Raises:
        BudgetError: the cheapest options cost more.

    Example:
        >>> by_hull([[(1, 9.0), (2, 4.0), (3, 3.9)], [(1, 5.0), (4, 0.0)]], 6)
        [1, 1]
    """
    hulls = [lower_hull(options) for options in groups]
    chosen = [hull[0] for hull in hulls]
    spent = sum(options[one][0] for options, one in zip(groups, chosen, strict=True))
    _check_possible(spent, budget)
    steps = chain.from_iterable(
        ((*_slope(options[one], options[other]), group, other) for one, other in pairwise(hull))
        for group, (options, hull) in enumerate(zip(groups, hulls, strict=True))
    )
    full = set()
    for _, cost, group, option in sorted(steps, reverse=True):
        if group in full:
            continue
        if _above(spent + cost, budget):
            full.add(group)
            continue
        chosen[group], spent = option, spent + cost
    return chosen


def lower_hull(options: Sequence[Option]) -> list[int]:
    """Options that no mix of two others beats, from the cheapest to the least loss.

    Example:
        >>> lower_hull([(1, 9.0), (2, 8.9), (3, 1.0), (4, 1.0), (5, 0.0)])
        [0, 2, 4]
    """
    hull: list[int] = []
    for index in sorted(range(len(options)), key=lambda one: options[one]):
        if hull and options[index][1] >= options[hull[-1]][1]:
            continue
        while (
            len(hull) > 1
            and _slope(options[hull[-2]], options[hull[-1]])[0]
            <= (_slope(options[hull[-1]], options[index])[0])
        ):
            hull.pop()
        hull.append(index)
    return hull


def _slope(one: Option, other: Option) -> tuple[float, float]:
    """Loss saved per cost, and the cost."""
    cost = other[0] - one[0]
    return (one[1] - other[1]) / cost, cost


def exactly(groups: Sequence[Sequence[Option]], budget: float) -> list[int]:
    """The least loss, by branch and bound (HiGHS, through `scipy.optimize.milp`).

    Args:
        groups: the options of each.
        budget: most that the options may cost together.

    Returns:
        Of each group, which option.

    Raises:
        BudgetError: the cheapest options cost more.
        MissingPackageError: scipy is not installed.

    Example:
        >>> exactly([[(1, 8.0), (2, 4.0)], [(1, 5.0), (4, 0.0)]], 5)
        [0, 1]
    """
    optimize = solver()
    least = sum(min(cost for cost, _ in options) for options in groups)
    _check_possible(least, budget)
    costs = np.array([cost for options in groups for cost, _ in options], float)
    losses = np.array([loss for options in groups for _, loss in options], float)
    one_each = np.zeros((len(groups), len(costs)))
    starts = np.cumsum([0, *(len(options) for options in groups)])
    for group, (start, end) in enumerate(pairwise(starts)):
        one_each[group, start:end] = 1
    scale, worst = budget or 1.0, np.abs(losses).max() or 1.0
    found = optimize.milp(
        losses / worst,
        integrality=np.ones(len(costs)),
        bounds=optimize.Bounds(0, 1),
        constraints=[
            optimize.LinearConstraint(one_each, 1, 1),
            optimize.LinearConstraint(costs[None] / scale, -np.inf, 1),
        ],
        options={"mip_rel_gap": 0.0},
    )
    assert found.x is not None, found.message
    taken = [int(np.argmax(found.x[start:end])) for start, end in pairwise(starts)]
    # the solver may be a rounding error above; then the hull's choice, which is not, stands
    spent = sum(options[one][0] for options, one in zip(groups, taken, strict=True))
    return by_hull(groups, budget) if _above(spent, budget) else taken


def solver() -> Any:
    """What `exactly` solves with.

    Raises:
        MissingPackageError: scipy is not installed.
    """
    return optional_package("scipy.optimize", "exact", "recipes")


def _above(cost: float, budget: float) -> bool:
    return cost > budget * (1 + ROUNDING)


def _check_possible(least: float, budget: float) -> None:
    if _above(least, budget):
        raise BudgetError(
            f"budget: expected at least {least:g}, the least possible, got {budget:g}"
        )
