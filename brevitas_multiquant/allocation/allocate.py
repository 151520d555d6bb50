"""`allocate`: a budget in, the bits of every layer out."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from brevitas_multiquant.allocation import knapsack
from brevitas_multiquant.allocation.accuracy import AccuracyFloor, Evaluate, accuracy_floor
from brevitas_multiquant.allocation.allocation import Allocation
from brevitas_multiquant.allocation.budget import Budget
from brevitas_multiquant.allocation.cheapest import cheapest
from brevitas_multiquant.allocation.problem import Candidates, Pin, Problem, problem_of
from brevitas_multiquant.allocation.report import allocation_of
from brevitas_multiquant.allocation.sites import Sites, sites_of
from brevitas_multiquant.allocation.solve import Found
from brevitas_multiquant.allocation.strategies.catalogue import (
    STRATEGIES,
    Request,
    Strategy,
    strategy_named,
)
from brevitas_multiquant.allocation.strategies.samples import read_once
from brevitas_multiquant.core.method import method_named
from brevitas_multiquant.core.precision import Assignment
from brevitas_multiquant.core.selection import MAX_BITS, is_whole
from brevitas_multiquant.errors import BitWidthError, BudgetError, ConfigError
from brevitas_multiquant.export.sample import smooth_images
from brevitas_multiquant.methods.convert import multiquantize
from brevitas_multiquant.nn.given import given_network
from brevitas_multiquant.nn.network import MultiQuantNet, device_of
from brevitas_multiquant.training.calibrate import calibrate

EVERY_BIT = tuple(range(2, 9))
"""Candidates for a float model."""


TRIES = 4
"""How often a strategy is asked again where the network takes more than was counted."""


def allocate(
    model: nn.Module,
    budget: Budget | None = None,
    *,
    strategy: str = "sqnr",
    accuracy_drop: float | None = None,
    evaluate: Evaluate | None = None,
    data: Any = None,
    candidates: Candidates | None = None,
    pins: Mapping[str, Pin] | None = None,
    groups: Sequence[Sequence[str]] = (),
    samples: int = 256,
    exact: bool = False,
    options: Mapping[str, Any] | None = None,
    bits: int | None = None,
    profile: str | None = None,
    input_shape: tuple[int, ...] | None = None,
    **conversion: Any,
) -> Allocation:
    """The bits of every layer's weights and activations, within a budget or above an accuracy.

    Of a float model, weights and activations of every site are chosen, for
    ``multiquantize(model, bits=allocation.assignment)``. Of a network of run-time bit-widths, what
    it can switch: the activations of one with branches, weights too of one with a single body.

    What reads one tensor shares its quantizer, and so its bits. Operands of an addition are no
    choice: the profile ``finn`` gives both sides the same.

    Args:
        model: a float CNN, or a network that `brevitas_multiquant.multiquantize` made.
        budget: the most it may cost; it is never above. May be left out where ``accuracy_drop``
            is given: then the fewest bit operations that are accurate enough.
        strategy: ``"sqnr"`` (default): noise at the output, from images without labels;
            ``"fisher"``: one backward, with labels; ``"fracbits"``: learned in some hundred updates
            of the network, with labels; ``"bayesian_bits"``: likewise, by gates between 2, 4 and 8;
            ``"mixquant"``: weights by their rounding error alone, no data; ``"supernet"``: measured
            step by step on a network of run-time bit-widths, with labels; ``"kl"``: how far the
            predicted classes go, from images without labels; ``"sensitivity"``: layers go down in
            the order of a metric, as long as the budget or ``accuracy_drop`` asks; ``"uniform"``:
            the same bits everywhere.
        accuracy_drop: how much of the accuracy of the float model may be lost (of a network, of
            that at its most bits): the cheapest that is found, in the unit of ``budget``. It is
            measured before any training, with all layers rounded: what training gains on top is
            not in it.
        evaluate: network -> its accuracy, larger is better; it is called with a network that maps
            images to logits. Default: the share of the images in ``data`` that are classified as
            labelled.
        data: batches of images (N, C, H, W), or of (images, labels).
        candidates: bits that may be chosen, or a mapping of ``"weight"`` and ``"activation"`` to
            them; default: 2 to 8 (``"bayesian_bits"``: 2, 4 and 8), or those of the network.
        pins: name or glob of layers or sites -> bits that are no choice: one number, or (weights,
            activations) with None for what stays free. A name counts before a glob.
        groups: names or globs of sites that get the same bits.
        samples: how many images are looked at.
        exact: solve the knapsack of ``"sqnr"``, ``"fisher"`` or ``"kl"`` exactly, with scipy; not
            for LUTs, where the cost of one layer depends on another.
        options: of the strategy alone, such as ``{"metric": "kl", "search": "greedy"}`` of
            ``"sensitivity"``; ``STRATEGIES[name].options`` lists them.
        bits: of the network that is made: where norms and sums of the profile ``finn`` look;
            default: the uniform bits within the budget. Of a network: which branches run; default:
            its most.
        profile: of the network that a float model becomes; default: ``"finn"`` for a budget of
            LUTs, else ``"paper"``.
        input_shape: (1, C, H, W) of images; default: what the model declares.
        **conversion: further options of ``multiquantize`` for a float model: ``stem``, ``head``,
            ``keep``.

    Raises:
        BudgetError: a budget that cannot be kept to, with what is possible; an accuracy that
            nothing within it reaches.
        BitWidthError: bits, candidates, pins or groups that cannot be.
        ConfigError: an unknown strategy, or one that cannot choose for this model or not exactly.
        CalibrationError: data that is missing, or without labels where they are needed.
        MissingPackageError: ``exact`` without scipy.

    Example:
        >>> import torch
        >>> layers = [nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU()]
        >>> model = nn.Sequential(*layers, nn.Conv2d(8, 8, 1), nn.Flatten(), nn.Linear(128, 10))
        >>> images, shape = torch.rand(4, 3, 8, 8), (1, 3, 8, 8)
        >>> found = allocate(model.eval(), Budget(uniform=4), data=[images], input_shape=shape)
        >>> found.cost <= found.budget == found.uniform.cost
        True
        >>> list(found.assignment), found.assignment["2"].weight in range(2, 9)
        (['2', '4'], True)
    """
    row = strategy_named(strategy)
    budget = _budget(budget, accuracy_drop, evaluate)
    if not is_whole(samples) or samples < 1:
        raise ConfigError(f"samples: expected at least 1, got {samples!r}")
    if exact and not row.knapsack:
        solving = [name for name, one in STRATEGIES.items() if one.knapsack]
        raise ConfigError(f"exact: expected it with one of {solving}, got {row.name!r}")
    if exact:
        knapsack.solver()  # whether it is there, before anything is measured
    given = {"profile": profile, "input_shape": input_shape, **conversion}
    made = {name: value for name, value in given.items() if value is not None}
    data = read_once(data, samples)
    sites = _given(model, row, bits, budget.unit, made, data)
    every = (row.candidates or EVERY_BIT) if sites.is_float else sites.net.bits
    chosen_from = every if candidates is None else candidates
    problem = problem_of(sites, budget, chosen_from, pins or {}, groups)
    request = Request(data, samples, exact, model, made, options=options or {})
    if accuracy_drop is None:
        found = _within(problem, row, request, problem.network_bits(bits))
        return allocation_of(problem, found.bits, problem.network_bits(bits), row.name, found.curve)
    floor = accuracy_floor(problem, accuracy_drop, evaluate, data, samples)
    found = _accurate(problem, row, request, floor, bits)
    limits = problem.cost(found.bits)  # beside it stands the uniform network of the same cost
    problem = replace(problem, limits=limits[:1] + problem.limits[1:])
    own = problem.network_bits(bits)
    made_of = allocation_of(problem, found.bits, own, row.name, found.curve)
    return replace(made_of, accuracy=floor.told(found.bits))


def _budget(budget: Any, accuracy_drop: Any, evaluate: Any) -> Budget:
    """The limit; where an accuracy is kept instead of one, all that the most bits cost."""
    if accuracy_drop is None and evaluate is not None:
        raise ConfigError("evaluate: expected it with accuracy_drop=, got it alone")
    if budget is None and accuracy_drop is not None:
        return Budget(ratio=1.0)
    if not isinstance(budget, Budget):
        raise BudgetError(
            f"budget: expected a Budget, such as Budget(uniform=4), or accuracy_drop=0.01 in place "
            f"of one, got {budget!r}"
        )
    return budget


def _accurate(
    problem: Problem, row: Strategy, request: Request, floor: AccuracyFloor, bits: int | None
) -> Found:
    """What a strategy finds that keeps an accuracy."""
    if row.keeps_floor:
        found = _within(problem, row, replace(request, floor=floor), problem.network_bits(bits))
        floor.require(found.bits, f"what {row.name!r} finds within the budget")
        return found
    return cheapest(
        problem,
        lambda limited: _within(limited, row, request, limited.network_bits(bits)),
        floor,
        row.descends,
    )


def _within(problem: Problem, row: Strategy, request: Request, bits: int) -> Found:
    """What a strategy finds, that is within the budget when it has been built too.

    Where terms are near but not exact, the limits that it is asked for are those much lower.

    Raises:
        BudgetError: as of strategies; or all that is found takes more than terms say.
    """
    asked = problem
    for _ in range(TRIES):
        found = row.found(asked, request)
        assert asked.fits(found.bits), "a strategy went above the budget"
        if problem.of is None:
            return found
        taken = problem.of(problem.assignment(found.bits, bits))
        if all(one <= most for one, most in zip(taken, problem.limits, strict=True)):
            return found
        counted = zip(asked.cost(found.bits), taken, problem.limits, asked.limits, strict=True)
        lower = [
            min(limit, terms * most / one) if one > most else limit
            for terms, one, most, limit in counted
        ]
        asked = replace(asked, limits=tuple(lower))
    raise BudgetError(
        f"budget: expected {problem.limits} to be kept to, got networks that take {taken} "
        f"{problem.unit} when they are built: lower it, or fold for another frame rate"
    )


def _given(
    model: nn.Module,
    row: Strategy,
    bits: int | None,
    unit: str,
    conversion: dict[str, Any],
    data: Any,
) -> Sites:
    """The sites of a network, or of what a float model becomes."""
    if not isinstance(model, nn.Module):
        raise ConfigError(f"allocate: expected a model or network, got {type(model).__name__}")
    if any(isinstance(module, MultiQuantNet) for module in model.modules()):
        net = given_network(model, "allocate")
        return _of_network(net, row, bits, conversion)
    if bits is not None and not (is_whole(bits) and 1 <= bits <= MAX_BITS):
        raise BitWidthError(f"bits: expected a whole number from 1 to {MAX_BITS}, got {bits!r}")
    if row.run_time:
        raise ConfigError(
            f"strategy: expected a network of run-time bit-widths for {row.name!r}, got a float "
            "model: train one first, or take 'sqnr'"
        )
    if unit == "luts":
        conversion = {"profile": "finn", **conversion}
    net = multiquantize(model, [2], check=False, **conversion)
    assert net.input_shape is not None
    images = smooth_images((8, *net.input_shape[1:]))

    def at(assignment: Assignment) -> MultiQuantNet:
        made = multiquantize(model, assignment, check=False, **conversion)  # type: ignore[arg-type]
        calibrate(made, [images.to(device_of(made))] if data is None else data)
        return made.eval()

    return sites_of(net, net.input_shape, 2, None, is_float=True, at=at, asked=bits)


def _of_network(
    net: MultiQuantNet, row: Strategy, bits: int | None, conversion: dict[str, Any]
) -> Sites:
    if conversion:
        raise ConfigError(
            f"allocate: expected {list(conversion)} for a float model, got a network, which is "
            "converted"
        )
    method = method_named(net.config.method)
    if method.most_candidates == 1:
        raise ConfigError(
            f"allocate: expected a float model or a network of run-time bit-widths, got one of "
            f"the method {net.config.method!r}, whose bits are fixed"
        )
    if row.weights:
        raise ConfigError(
            f"strategy: expected a float model for {row.name!r}, which chooses bits of weights, "
            "got a network: take 'sqnr'"
        )
    if bits is not None and bits not in net.bits:
        raise BitWidthError(f"bits: expected one of the network's, {list(net.bits)}, got {bits!r}")
    shape = net.input_shape or (1, 3, 224, 224)
    own = max(net.bits) if bits is None else bits
    return sites_of(net, shape, own, method.weight_bits, tied=method.tied)
