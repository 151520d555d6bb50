"""From bits that were chosen to an `Allocation`: what they cost, layer by layer."""

from collections.abc import Iterable, Sequence
from dataclasses import replace

from brevitas_multiquant.allocation.allocation import Allocation, CurvePoint, LayerShare, Uniform
from brevitas_multiquant.allocation.problem import Bits, Problem
from brevitas_multiquant.allocation.solve import Point
from brevitas_multiquant.cost.terms import Term, as_resources


def allocation_of(
    problem: Problem,
    chosen: Bits,
    bits: int,
    strategy: str,
    curve: Iterable[Point] = (),
    counted: Sequence[Term] | None = None,
) -> Allocation:
    """What a choice is, beside the uniform network.

    Args:
        problem: what could be chosen.
        chosen: bits of each width.
        bits: the network's.
        strategy: that chose.
        curve: other choices.
        counted: terms of the cost of this choice; default: those of the problem.
    """
    best = problem.best_uniform()
    uniform = None
    if best is not None:
        of_uniform = problem.assignment(best[1], bits)
        uniform = Uniform(best[0], problem.cost(best[1])[0], of_uniform)
    own = problem if counted is None else replace(problem, terms=tuple(counted))
    total = own.cost(chosen)
    return Allocation(
        problem.assignment(chosen, bits),
        total[0],
        problem.limits[0],
        problem.unit,
        strategy,
        uniform,
        tuple(_shares(own, chosen)),
        tuple(
            CurvePoint(point.cost, point.loss, problem.assignment(point.bits, bits))
            for point in curve
        ),
        total[1] if len(total) > 1 else 0,
        problem.convention,
    )


def _shares(problem: Problem, chosen: Bits) -> list[LayerShare]:
    costs: dict[str, float] = {}
    for term in problem.terms:
        costs[term.layer] = costs.get(term.layer, 0.0) + as_resources(term(chosen))[0]
    total = sum(costs.values()) or 1.0
    sites, rows = problem.sites, []
    full = {width: chosen[first] for width, first in problem.same.items()}
    for layer in sites.layers:
        if layer.name in costs:
            cost = costs.pop(layer.name)
            weight, read = (None, None) if layer.is_float else sites.bits_of(layer, full)
            rows.append(LayerShare(layer.name, weight, read, cost, cost / total))
    rows += [LayerShare(name, None, None, cost, cost / total) for name, cost in costs.items()]
    return rows
