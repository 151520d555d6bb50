"""Where a search starts and ends: uniform bits of a budget, budgets that need none."""

from collections.abc import Mapping, Sequence

from brevitas_multiquant.allocation.problem import Problem
from brevitas_multiquant.allocation.sites import Width
from brevitas_multiquant.cost.terms import total_of
from brevitas_multiquant.errors import BudgetError


def require_below_the_most(problem: Problem) -> None:
    """Refuse a budget that the most bits keep to: there is nothing to learn.

    Raises:
        BudgetError: naming what they cost.
    """
    most = problem.uniform()
    if problem.fits(most):
        raise BudgetError(
            f"budget: expected less than {problem.cost(most)[0]:g} {problem.unit}, what the most "
            f"bits that can be chosen cost, got {problem.limits[0]:g}: every layer can have them, "
            "without a search"
        )


def uniform_bits(problem: Problem) -> float:
    """Real-valued bits that cost the budget if every width has them, where it can; by bisection."""
    low, high = (float(end(end(of) for of in problem.candidates.values())) for end in (min, max))
    for _ in range(40):
        middle = (low + high) / 2
        bits = {w: min(max(middle, of[0]), of[-1]) for w, of in problem.candidates.items()}
        over = total_of(problem.terms, bits)[0] > problem.limits[0]
        low, high = (low, middle) if over else (middle, high)
    return low


def is_uniform(
    problem: Problem, chosen: Mapping[Width, int], channels: Mapping[str, Sequence[int]]
) -> bool:
    """Whether a choice has the same bits wherever they could be chosen."""
    free = {bits for width, bits in chosen.items() if len(problem.candidates[width]) > 1}
    return len(free) == 1 and all(len(set(of)) == 1 for of in channels.values())
