"""Bits of a network that was trained for many assignments: greedy steps down, each one measured.

From the most bits everywhere, each round tries every bit-width one candidate lower and takes the
step that adds the least loss per saved cost, until the budget is met: the search of RFQuant
(CVPR 2024) and of Bit-Mixer (arXiv:2103.17267), for one training and any number of budgets. Norms
see other statistics under every assignment; they are estimated anew for each that is tried.
"""

from collections.abc import Sequence
from functools import partial
from math import isfinite

import torch
import torch.nn.functional as F
from torch import Tensor

from brevitas_multiquant.allocation.problem import Bits, Problem
from brevitas_multiquant.allocation.rounding import round_to_budget
from brevitas_multiquant.allocation.sites import Width
from brevitas_multiquant.allocation.solve import Found, Point, pareto
from brevitas_multiquant.allocation.strategies.samples import labelled
from brevitas_multiquant.nn.network import device_of
from brevitas_multiquant.training.norm_statistics import assigned_norms

Batches = Sequence[tuple[Tensor, Tensor]]


def supernet(problem: Problem, data: object, samples: int) -> Found:
    """Steps down by the least measured loss per saved cost.

    Args:
        problem: of a network of run-time bit-widths.
        data: batches (images, labels).
        samples: how many images.

    Raises:
        CalibrationError: no data, or data without labels.
        BudgetError: no steps lead to the budget.
    """
    device = device_of(problem.sites.net)
    moved: Batches = [
        (images.to(device), labels.to(device))
        for images, labels in labelled(data, "supernet", samples)
    ]
    chosen: Bits = problem.uniform()
    points = [Point(problem.cost(chosen)[0], _loss(problem, chosen, moved), chosen)]
    while not problem.fits(chosen):
        tried = [(width, _lower(problem, chosen, width)) for width in chosen]
        steps = [
            Point(problem.cost(lower)[0], _loss(problem, lower, moved), lower)
            for _, lower in tried
            if lower is not None and _size(problem, lower) < _size(problem, chosen)
        ]
        if not steps:  # says what is possible, or finds what no single step leads to
            as_floats = {width: float(bits) for width, bits in chosen.items()}
            rounded = (problem.candidates, problem.terms, problem.limits)
            return Found(round_to_budget(as_floats, *rounded), tuple(pareto(points)))
        best = min(steps, key=partial(_price, problem, points[-1]))
        chosen = best.bits
        points.append(best)
    return Found(chosen, tuple(pareto(points)))


def _lower(problem: Problem, chosen: Bits, width: Width) -> Bits | None:
    below = [bits for bits in problem.candidates[width] if bits < chosen[width]]
    return {**chosen, width: below[-1]} if below else None


def _size(problem: Problem, chosen: Bits) -> float:
    """What a choice costs, as a share of the limits: the sum over those that there are."""
    pairs = zip(problem.cost(chosen), problem.limits, strict=True)
    return sum(cost / (most or 1) for cost, most in pairs if isfinite(most))


def _price(problem: Problem, here: Point, there: Point) -> float:
    """Loss that a step adds, per cost that it saves; a step that adds none is free."""
    saved = _size(problem, here.bits) - _size(problem, there.bits)
    return (there.loss - here.loss) / saved


def _loss(problem: Problem, chosen: Bits, batches: Batches) -> float:
    """Mean cross-entropy of the network at a choice, with norms of its own."""
    sites = problem.sites
    assignment = problem.assignment(chosen, sites.bits)
    view = assigned_norms(sites.net, assignment, batches, batches=len(batches)).eval()
    total, count = 0.0, 0
    with torch.no_grad():
        for batch in batches:
            images, labels = batch
            total += float(F.cross_entropy(view(images), labels, reduction="sum"))
            count += len(images)
    return total / count
