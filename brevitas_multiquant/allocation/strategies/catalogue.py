"""Strategies as rows of data: what each needs, and how it chooses."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch import nn

from brevitas_multiquant.allocation.accuracy import AccuracyFloor
from brevitas_multiquant.allocation.bit_plane_search import BitPlaneSearch
from brevitas_multiquant.allocation.bit_search import BitSearch
from brevitas_multiquant.allocation.gate_search import PUBLISHED, GateSearch
from brevitas_multiquant.allocation.problem import Problem
from brevitas_multiquant.allocation.sampled_search import SampledSearch
from brevitas_multiquant.allocation.solve import Found, Point, solve
from brevitas_multiquant.allocation.strategies import (
    fisher,
    kl,
    mixquant,
    sensitivity,
    sqnr,
    supernet,
)
from brevitas_multiquant.allocation.strategies.short_search import STEPS, short_search
from brevitas_multiquant.core.named import row_named
from brevitas_multiquant.errors import ConfigError


@dataclass(frozen=True)
class Request:
    """What a strategy may look at beside the problem.

    Args:
        data: batches of images, or of (images, labels).
        samples: how many images.
        exact: branch and bound instead of the convex hull.
        model: what was given, for strategies that train it.
        conversion: options with which it becomes a network.
        floor: the accuracy that has to be kept, for strategies that look at it as they go.
        options: of the strategy alone, by name.
    """

    data: Any = None
    samples: int = 256
    exact: bool = False
    model: nn.Module | None = None
    conversion: Mapping[str, Any] = field(default_factory=dict)
    floor: AccuracyFloor | None = None
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Strategy:
    """A row of `STRATEGIES`.

    Args:
        name: what users call it.
        choose: a problem, and what it may look at -> bits of each width; the arguments by keyword
            that it takes beside are its options.
        weights: whether it needs bits of weights to choose, and so a float model.
        paper: where it is from.
        run_time: whether it needs a network of run-time bit-widths.
        knapsack: whether it solves a knapsack, which can be done exactly.
        keeps_floor: whether it keeps the accuracy of a request itself.
        descends: whether its curve goes down from the most bits as far as a budget asks.
        candidates: of a float model, where nobody gives any; None: 2 to 8.
    """

    name: str
    choose: Callable[..., Found]
    weights: bool
    paper: str
    run_time: bool = False
    knapsack: bool = False
    keeps_floor: bool = False
    descends: bool = False
    candidates: tuple[int, ...] | None = None

    @property
    def options(self) -> tuple[str, ...]:
        """Names of what can be asked of it alone.

        Example:
            >>> STRATEGIES["sensitivity"].options, STRATEGIES["sqnr"].options
            (('metric', 'search'), ())
        """
        given = inspect.signature(self.choose).parameters.values()
        return tuple(one.name for one in given if one.kind is one.KEYWORD_ONLY)

    def found(self, problem: Problem, request: Request) -> Found:
        """What it chooses.

        Raises:
            ConfigError: an option that it has not.
        """
        unknown = [name for name in request.options if name not in self.options]
        if unknown:
            raise ConfigError(
                f"options: expected {list(self.options) or 'none'} for the strategy {self.name!r}, "
                f"got {unknown}"
            )
        return self.choose(problem, request, **request.options)


def _uniform(problem: Problem, request: Request) -> Found:
    points = [
        Point(problem.cost(one)[0], 4.0**-bits, one) for bits, one in problem.uniforms().items()
    ]
    return Found(problem.require_uniform("uniform")[1], tuple(points))


def _sqnr(problem: Problem, request: Request) -> Found:
    return solve(problem, sqnr.noise(problem, request.data, request.samples), request.exact)


def _mixquant(problem: Problem, request: Request) -> Found:
    return mixquant.mixquant(problem)


def _fisher(problem: Problem, request: Request) -> Found:
    return solve(problem, fisher.sensitivity(problem, request.data, request.samples), request.exact)


def _kl(problem: Problem, request: Request) -> Found:
    return solve(problem, kl.divergence(problem, request.data, request.samples), request.exact)


def _sensitivity(
    problem: Problem, request: Request, *, metric: str = "noise", search: str = "bisection"
) -> Found:
    holds = None
    if request.floor is not None:
        request.floor.require(problem.uniform(), "the most bits that are candidates")
        holds = request.floor.holds
    return sensitivity.sensitivity(
        problem, request.data, request.samples, holds, metric=metric, search=search
    )


def _short(problem: Problem, request: Request, **how: Any) -> Found:
    assert request.model is not None
    own = (request.model, request.conversion, request.data, request.samples)
    return short_search(problem, *own, **how)


def _fracbits(problem: Problem, request: Request, *, steps: int = STEPS) -> Found:
    return _short(problem, request, strategy="fracbits", make=BitSearch, steps=steps)


def _bayesian_bits(
    problem: Problem, request: Request, *, steps: int = STEPS, seed: int = 0
) -> Found:
    how: Any = {"strategy": "bayesian_bits", "make": GateSearch, "steps": steps, "seed": seed}
    return _short(problem, request, **how)


def _fliqs(
    problem: Problem,
    request: Request,
    *,
    steps: int = STEPS,
    seed: int = 0,
    beta: float = 1.0,
    rate: float = 0.05,
    entropy: float = 0.1,
    uniform_share: float = 0.2,
) -> Found:
    options = {"beta": beta, "rate": rate, "entropy": entropy, "uniform_share": uniform_share}
    make = partial(SampledSearch, policy="fliqs", options=options)
    return _short(problem, request, strategy="fliqs", make=make, steps=steps, seed=seed)


def _amed(
    problem: Problem,
    request: Request,
    *,
    steps: int = STEPS,
    seed: int = 0,
    temperature: float = 1.0,
    period: int = 10,
    loss_share: float = 0.5,
) -> Found:
    options = {"temperature": temperature, "period": period, "loss_share": loss_share}
    make = partial(SampledSearch, policy="amed", options=options)
    return _short(problem, request, strategy="amed", make=make, steps=steps, seed=seed)


def _csq(
    problem: Problem,
    request: Request,
    *,
    steps: int = STEPS,
    strength: float = 1.0,
    rate: float = 0.05,
) -> Found:
    make = partial(BitPlaneSearch, strength=strength, rate=rate)
    return _short(problem, request, strategy="csq", make=make, steps=steps)


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
        "bayesian_bits",
        _bayesian_bits,
        weights=True,
        paper="Bayesian Bits (2005.07093), a short search",
        candidates=PUBLISHED,
    ),
    Strategy("fliqs", _fliqs, weights=True, paper="FLIQS (2308.03290), a short search"),
    Strategy("amed", _amed, weights=True, paper="AMED (2205.15437), a short search"),
    Strategy("csq", _csq, weights=True, paper="CSQ (2212.02770), a short search"),
    Strategy(
        "fisher",
        _fisher,
        weights=True,
        paper="NVIDIA Model Optimizer, auto_quantize",
        knapsack=True,
    ),
    Strategy(
        "kl",
        _kl,
        weights=False,
        paper="On-chip hardware-aware quantization, OHQ (2309.01945)",
        knapsack=True,
    ),
    Strategy(
        "sensitivity",
        _sensitivity,
        weights=False,
        paper="Sensitivity-guided search (2302.01382)",
        keeps_floor=True,
    ),
    Strategy(
        "supernet",
        _supernet,
        weights=False,
        paper="RFQuant (CVPR 2024)",
        run_time=True,
        descends=True,
    ),
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
