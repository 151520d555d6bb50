"""Bits of weights by their round-trip error alone: no data.

MixQuant (Kloberdanz and Le, arXiv:2309.17341): of each layer the fewest bits whose squared error is
at most a multiple of that of the most bits. The multiple, the user's in the paper, is found from
the budget here: there are only as many as ratios of errors.
"""

from bisect import bisect_left

import torch

from brevitas_multiquant.allocation.problem import Problem
from brevitas_multiquant.allocation.rounding import round_to_budget
from brevitas_multiquant.allocation.sites import WEIGHT, Width
from brevitas_multiquant.allocation.solve import Found, Point, pareto
from brevitas_multiquant.allocation.strategies.simulate import Simulation, weights
from brevitas_multiquant.core.devices import in_fp64

Errors = dict[Width, dict[int, float]]
"""Width of weights -> bits -> squared error."""


def round_trip_errors(problem: Problem) -> Errors:
    """Squared error of the weights of each site, at each candidate; no less with fewer bits."""
    layers = Simulation(problem.sites).layers
    errors: Errors = {}
    with torch.no_grad():
        for width, of in problem.candidates.items():
            if width[1] != WEIGHT:
                continue
            mine = [layer for site, _ in problem.members(width) for layer in layers[site]]
            most = 0.0
            errors[width] = {}
            for bits in reversed(of):
                differences = (weights(one, bits) - one.effective_weight() for one in mine)
                most = max(most, sum(float(in_fp64(d).square().sum()) for d in differences))
                errors[width][bits] = most
    return errors


def mixquant(problem: Problem) -> Found:
    """Weights by one multiple of the least error; activations have the uniform network's bits.

    Raises:
        BudgetError: nothing that is uniform keeps to the budget, so that there are no bits for
            the activations.
    """
    _, uniform = problem.require_uniform("mixquant")
    errors = round_trip_errors(problem)
    multiples = sorted({one / _least(of) for of in errors.values() for one in of.values()})
    choices = [{**uniform, **_fewest(errors, multiple)} for multiple in multiples]
    # the largest multiple costs least: the first one that fits is the best one that does
    index = bisect_left(range(len(choices)), True, key=lambda one: problem.fits(choices[one]))
    start = choices[index] if index < len(choices) else uniform

    def gain(width: Width, low: int, high: int) -> float:
        return max(errors[width][low] - errors[width][high], 1e-30)

    free = {w: of if w[1] == WEIGHT else (start[w],) for w, of in problem.candidates.items()}
    as_floats = {width: float(bits) for width, bits in start.items()}
    bits = round_to_budget(as_floats, free, problem.terms, problem.limits, gain)
    points = [
        Point(problem.cost(one)[0], sum(errors[w][one[w]] for w in errors), one) for one in choices
    ]
    return Found(bits, tuple(pareto(points)))


def _least(errors: dict[int, float]) -> float:
    return min(errors.values()) or 1.0


def _fewest(errors: Errors, multiple: float) -> dict[Width, int]:
    # as a float the ratio times the least error may be below the error that it is the ratio of
    most = {width: multiple * _least(of) * (1 + 1e-12) for width, of in errors.items()}
    return {w: min(b for b, one in of.items() if one <= most[w]) for w, of in errors.items()}
