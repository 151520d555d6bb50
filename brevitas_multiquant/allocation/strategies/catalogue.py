"""Strategies as rows of data: what each needs, and how it chooses."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from brevitas_multiquant.allocation.problem import Problem
from brevitas_multiquant.allocation.solve import Found, solve
from brevitas_multiquant.allocation.strategies import fisher, fracbits, mixquant, sqnr, supernet
from brevitas_multiquant.core.named import row_named


@dataclass(frozen=True)
class Request:
    """What a strategy may look at beside the problem.

    Args:
        data: batches of images, or of (images, labels).
        samples: how many images.
        exact: branch and bound instead of the convex hull.
        model: what was given, for strategies that train it.
        conversion: options with which it becomes a network.
    """

    data: Any = None
    samples: int = 256
    exact: bool = False
    model: nn.Module | None = None
    conversion: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Strategy:
    """A row of `STRATEGIES`.

    Args:
        name: what users call it.
        choose: a problem, and what it may look at -> bits of each width.
        weights: whether it needs bits of weights to choose, and so a float model.
        paper: where it is from.
        run_time: whether it needs a network of run-time bit-widths.
        knapsack: whether it solves a knapsack, which can be done exactly.
    """

    name: str
    choose: Callable[[Problem, Request], Found]
    weights: bool
    paper: str
    run_time: bool = False
    knapsack: bool = False


def _uniform(problem: Problem, request: Request) -> Found:
    return Found(problem.require_uniform("uniform")[1])


def _sqnr(problem: Problem, request: Request) -> Found:
    return solve(problem, sqnr.noise(problem, request.data, request.samples), request.exact)


def _mixquant(problem: Problem, request: Request) -> Found:
    return mixquant.mixquant(problem)


def _fisher(problem: Problem, request: Request) -> Found:
    return solve(problem, fisher.sensitivity(problem, request.data, request.samples), request.exact)


def _fracbits(problem: Problem, request: Request) -> Found:
    assert request.model is not None
    return fracbits.fracbits(
        problem, request.model, request.conversion, request.data, request.samples
    )


def _supernet(problem: Problem, request: Request) -> Found:
    return supernet.supernet(problem, request.data, request.samples)


_ROWS = (
    Strategy("uniform", _uniform, weights=False, paper="the baseline: one bit-width everywhere"),
    Strategy(
        "sqnr", _sqnr, weights=False, paper="Practical mixed precision (2302.05397)", knapsack=True
    ),
    Strategy("mixquant", _mixquant, weights=True, paper="MixQuant (2309.17341)"),
    Strategy("fracbits", _fracbits, weights=True, paper="FracBits (2007.02017), a short search"),
    Strategy(
        "fisher",
        _fisher,
        weights=True,
        paper="NVIDIA Model Optimizer, auto_quantize",
        knapsack=True,
    ),
    Strategy("supernet", _supernet, weights=False, paper="RFQuant (CVPR 2024)", run_time=True),
)
STRATEGIES = {row.name: row for row in _ROWS}
"""Name -> strategy."""


def strategy_named(name: Any, known: Mapping[str, Strategy] = STRATEGIES) -> Strategy:
    """The strategy of a name.

    Raises:
        ConfigError: there is none; names the nearest.

    Example:
        >>> strategy_named("sqnr").paper
        'Practical mixed precision (2302.05397)'
    """
    return row_named("strategy", name, known)
