"""An accuracy that has to be kept, in place of a budget or beside one."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from brevitas_multiquant.allocation.problem import Bits, Problem
from brevitas_multiquant.allocation.sites import ACTIVATION
from brevitas_multiquant.allocation.strategies.samples import images_of, labelled, on
from brevitas_multiquant.allocation.strategies.simulate import Simulation
from brevitas_multiquant.errors import BudgetError, ConfigError
from brevitas_multiquant.nn.network import device_of
from brevitas_multiquant.training.norm_statistics import assigned_norms

Evaluate = Callable[[nn.Module], float]
"""A network that maps images (N, C, H, W) to logits, in evaluation mode -> how good it is."""

CALLER = "accuracy_drop"


class Accuracy(NamedTuple):
    """What was measured of an allocation.

    Args:
        found: of the network at its bits.
        reference: of the float model; of a network of run-time bit-widths, at its most bits.
        floor: what had to be kept.
    """

    found: float
    reference: float
    floor: float


@dataclass(frozen=True)
class AccuracyFloor:
    """The least accuracy, and how a choice is measured; what was measured once is kept.

    Args:
        measure: bits of each width -> accuracy; None: of the reference.
        drop: how much below the reference is still good enough.
    """

    measure: Callable[[Bits | None], float]
    drop: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "_known", {})

    def of(self, chosen: Bits | None) -> float:
        """The accuracy of a choice; None: of the reference."""
        known: dict[Any, float] = self._known  # type: ignore[attr-defined]
        key = None if chosen is None else tuple(sorted(chosen.items()))
        if key not in known:
            known[key] = self.measure(chosen)
        return known[key]

    @property
    def least(self) -> float:
        """What has to be kept."""
        return self.of(None) - self.drop

    def holds(self, chosen: Bits) -> bool:
        """Whether a choice is accurate enough."""
        least = self.least  # of the reference, which is measured first
        return self.of(chosen) >= least

    def require(self, chosen: Bits, what: str) -> None:
        """Refuse a choice that is not.

        Args:
            chosen: bits of each width.
            what: they are.

        Raises:
            BudgetError: with what it reaches.
        """
        if not self.holds(chosen):
            raise BudgetError(
                f"accuracy_drop: expected {what} to reach {self.least:.4g}, {self.drop:g} below "
                f"the reference's {self.of(None):.4g}, got {self.of(chosen):.4g}: allow a larger "
                "drop, more bits as candidates, or a larger budget"
            )

    def told(self, chosen: Bits) -> Accuracy:
        """For people."""
        return Accuracy(self.of(chosen), self.of(None), self.least)


def accuracy_floor(
    problem: Problem, drop: object, evaluate: Evaluate | None, data: Any, samples: int
) -> AccuracyFloor:
    """A floor that is measured on the network before any training.

    Of a float model every bit-width is rounded as `strategies.simulate` does, all of them
    together, with ranges of what the float network reads; of a network of run-time bit-widths the
    norms are estimated anew at each choice.

    Args:
        problem: what can be chosen.
        drop: 0 or more, in the unit of ``evaluate``; a share of the images without one.
        evaluate: how good a network is; default: the share of the images of ``data`` that it
            classifies as labelled.
        data: batches of images, or of (images, labels).
        samples: how many images.

    Raises:
        ConfigError: a drop that is no number from 0 on, or an ``evaluate`` that gives none.
        CalibrationError: no data, or without labels where there is no ``evaluate``.
    """
    if isinstance(drop, bool) or not isinstance(drop, (int, float)) or not 0 <= drop < float("inf"):
        raise ConfigError(f"accuracy_drop: expected a number from 0 on, got {drop!r}")
    device = device_of(problem.sites.net)
    images = [on(device, one)[0] for one in images_of(data, CALLER, samples)]
    if evaluate is None:
        pairs = [on(device, *pair) for pair in labelled(data, CALLER, samples)]
        evaluate = _share_of_right(pairs)
    networks = _rounded if problem.sites.is_float else _views
    at = networks(problem, images)

    def measure(chosen: Bits | None) -> float:
        with torch.no_grad(), at(chosen) as net:
            found = evaluate(net)
        if isinstance(found, bool) or not isinstance(found, (int, float)) or found != found:
            raise ConfigError(f"evaluate: expected it to give a number, got {found!r}")
        return float(found)

    return AccuracyFloor(measure, float(drop))


At = Callable[[Bits | None], AbstractContextManager[nn.Module]]
"""Inside the block, the network at a choice; None: the reference."""


def _rounded(problem: Problem, images: Sequence[Tensor]) -> At:
    """The float model with everything rounded, in ranges that the first batch chooses."""
    run = Simulation(problem.sites)
    with torch.no_grad():
        for site, x in run.read(images[0]):
            width = (site, ACTIVATION)
            for bits in problem.candidates[problem.same[width]]:
                run.activations(width, bits, x)

    def at(chosen: Bits | None) -> AbstractContextManager[nn.Module]:
        if chosen is None:
            return run.at({})
        return run.at({width: chosen[first] for width, first in problem.same.items()})

    return at


def _views(problem: Problem, images: Sequence[Tensor]) -> At:
    """The network at an assignment, with norms of its own."""
    sites = problem.sites

    @contextmanager
    def at(chosen: Bits | None) -> Iterator[nn.Module]:
        bits = problem.uniform() if chosen is None else chosen
        assignment = problem.assignment(bits, sites.bits)
        yield assigned_norms(sites.net, assignment, images, batches=len(images)).eval()

    return at


def _share_of_right(pairs: Sequence[tuple[Tensor, ...]]) -> Evaluate:
    def evaluate(net: nn.Module) -> float:
        right = sum(int((net(images).argmax(1) == labels).sum()) for images, labels in pairs)
        return right / sum(len(labels) for _, labels in pairs)

    return evaluate
