"""Layers in the order of a metric, lowered as long as accuracy or budget ask: no training.

Sensitivity-guided search (Schaefer et al., arXiv:2302.01382): layers are ordered by a metric of
their sensitivity, and for each lower bit-width a bisection, or a greedy pass, finds how many of the
least sensitive can have it while the measured accuracy stays above a target. Established from
descriptions by others. Here every width, the weights that read a site or its activations, is one of
the ordered; a width goes down to the next lower candidate only if it has the one above it, so that
the sets nest.
"""

from collections.abc import Callable, Sequence
from typing import Any

from brevitas_multiquant.allocation.problem import Problem
from brevitas_multiquant.allocation.rounding import round_to_budget
from brevitas_multiquant.allocation.sites import Width
from brevitas_multiquant.allocation.solve import Found, Point, monotone, pareto
from brevitas_multiquant.allocation.strategies.metrics import losses_by
from brevitas_multiquant.core.config import check_choice

Chosen = dict[Width, int]
Holds = Callable[[Chosen], bool]
"""Whether a choice is accurate enough."""


def sensitivity(
    problem: Problem,
    data: Any,
    samples: int,
    holds: Holds | None,
    *,
    metric: str = "noise",
    search: str = "bisection",
) -> Found:
    """As few bits as the accuracy allows; or, without one to keep, steps down to the budget.

    Args:
        problem: what can be chosen.
        data: what the metric looks at.
        samples: how many images.
        holds: whether a choice is accurate enough; None: the budget alone counts.
        metric: a name in `strategies.metrics.METRICS`.
        search: ``"bisection"``: how many go down, the accuracy taken to fall with their number;
            ``"greedy"``: one by one, and one that costs too much stays.

    Raises:
        ConfigError: an unknown metric or search.
        CalibrationError: as of the metric.
        BudgetError: no steps lead to the budget.
    """
    check_choice("search", search, tuple(SEARCHES))
    losses = losses_by(metric, problem, data, samples)
    fewer = {width: monotone(losses[width]) for width in problem.candidates}

    def point(chosen: Chosen) -> Point:
        loss = sum(fewer[width][bits] for width, bits in chosen.items())
        return Point(problem.cost(chosen)[0], loss, chosen)

    chosen: Chosen = problem.uniform()
    points = [point(chosen)]
    keep = SEARCHES[search] if holds is not None else _until_it_fits
    for bits in _levels(problem):
        order = _order(problem, fewer, chosen, bits)
        lowered = keep(problem, chosen, order, bits, holds)
        for count in range(1, len(order) + 1):
            points.append(point(_lower(chosen, order[:count], bits)))
        chosen = lowered
        if holds is None and problem.fits(chosen):
            break
    if not problem.fits(chosen):
        as_floats = {width: float(bits) for width, bits in chosen.items()}
        chosen = round_to_budget(as_floats, problem.candidates, problem.terms, problem.limits)
    return Found(chosen, tuple(pareto(points)))


def _levels(problem: Problem) -> list[int]:
    """Bits that something can go down to, from the most."""
    lower = {bits for of in problem.candidates.values() for bits in of[:-1]}
    return sorted(lower, reverse=True)


def _order(problem: Problem, losses: Any, chosen: Chosen, bits: int) -> list[Width]:
    """What can take the step to these bits, the least sensitive first."""
    able = [
        width
        for width, of in problem.candidates.items()
        if bits in of and of.index(bits) + 1 < len(of) and chosen[width] == of[of.index(bits) + 1]
    ]
    return sorted(able, key=lambda width: losses[width][bits])


def _lower(chosen: Chosen, some: Sequence[Width], bits: int) -> Chosen:
    return {**chosen, **dict.fromkeys(some, bits)}


def _bisection(
    problem: Problem, chosen: Chosen, order: Sequence[Width], bits: int, holds: Holds
) -> Chosen:
    low, high = 0, len(order) + 1  # so many of them hold, so many do not
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if holds(_lower(chosen, order[:middle], bits)) else (low, middle)
    return _lower(chosen, order[:low], bits)


def _greedy(
    problem: Problem, chosen: Chosen, order: Sequence[Width], bits: int, holds: Holds
) -> Chosen:
    for width in order:
        lower = _lower(chosen, [width], bits)
        chosen = lower if holds(lower) else chosen
    return chosen


def _until_it_fits(
    problem: Problem, chosen: Chosen, order: Sequence[Width], bits: int, holds: Holds | None
) -> Chosen:
    for width in order:
        if problem.fits(chosen):
            break
        chosen = _lower(chosen, [width], bits)
    return chosen


SEARCHES: dict[str, Callable[..., Chosen]] = {"bisection": _bisection, "greedy": _greedy}
"""How many of the ordered go down, while a choice holds."""
