"""What every search for bit-widths during training is: where it starts, settles and goes on.

Subclasses say how bits move (`bit_search`, `sampled_search`). What moves them is a module of the
network for as long as bits are open, so that a checkpoint of the state dict holds all of a search.
"""

import warnings
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import isfinite
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from brevitas_multiquant.allocation.allocation import Allocation
from brevitas_multiquant.allocation.budget import Budget
from brevitas_multiquant.allocation.ends import is_uniform, require_below_the_most
from brevitas_multiquant.allocation.learned_widths import Channels, LearnedWidths
from brevitas_multiquant.allocation.problem import Candidates, Pin, Problem, problem_of
from brevitas_multiquant.allocation.pruned import PrunedChannels
from brevitas_multiquant.allocation.report import allocation_of
from brevitas_multiquant.allocation.searchable import require_searchable
from brevitas_multiquant.allocation.sites import Width, sites_of
from brevitas_multiquant.core.copying import copied
from brevitas_multiquant.core.precision import Assignment
from brevitas_multiquant.errors import ConfigError, UniformBitsWarning
from brevitas_multiquant.methods.settle import settle
from brevitas_multiquant.nn.network import MultiQuantNet
from brevitas_multiquant.training.task import Objective, TrainingTask


@dataclass(frozen=True)
class Settled:
    """What a search found.

    Args:
        allocation: whole bits of every site, and what they cost.
        channels: layer -> bits of each of its output channels, where those were learned.
        ratio: cost over budget of the real-valued bits, before they were rounded.
        learned: ``layer1.conv1 weight`` -> its real-valued bits, of channels the mean.
    """

    allocation: Allocation
    channels: Channels
    ratio: float
    learned: Mapping[str, float]

    def to_dict(self) -> dict[str, Any]:
        """Plain values that JSON can hold, of which `Search.restore` makes it again."""
        return {
            "assignment": self.allocation.assignment.to_dict(),
            "channels": {layer: list(of) for layer, of in self.channels.items()},
            "ratio": self.ratio,
            "learned": dict(self.learned),
        }


class Search(TrainingTask):
    """The training task of a search; afterwards it is plain training.

    Args:
        net: of the method ``"individual"``, at the most bits that anything may get.
        budget: the most it may cost; or a whole problem, which says all up to ``groups``.
        candidates: bits that may be chosen.
        pins: name or glob of layers or sites -> bits that are no choice.
        groups: names or globs of sites that get the same bits.
        criterion: (logits, target) -> scalar; default cross entropy.
        input_shape: of images; default: the shape that the network was built with.

    Attributes:
        problem: what can be chosen.
        widths: the bits, in the quantizers of the network.
        settled: what was found, once it was.
        pruned: what keeps pruned channels at 0, once bits are whole.
    """

    strategy: ClassVar[str]
    """What its allocation says that found it."""

    advice: ClassVar[str]
    """What to do where it ends at uniform bits."""

    mover: ClassVar[str]
    """Name of the network's module that moves the bits while they are open."""

    problem: Problem
    widths: LearnedWidths

    def __init__(
        self,
        net: MultiQuantNet,
        budget: Budget | Problem,
        *,
        candidates: Candidates = tuple(range(2, 9)),
        pins: Mapping[str, Pin] | None = None,
        groups: Sequence[Sequence[str]] = (),
        criterion: Callable[[Tensor, Tensor], Tensor] | None = None,
        input_shape: tuple[int, ...] | None = None,
    ) -> None:
        super().__init__(net, Objective(), criterion=criterion)
        require_searchable(net)
        if not isinstance(budget, Problem):
            shape = input_shape or net.input_shape or (1, 3, 224, 224)
            at = partial(_settled_copy, net)
            sites = sites_of(net, shape, net.bits[0], None, at=at, takes_any_bits=True)
            budget = problem_of(sites, budget, candidates, pins or {}, groups)
        require_below_the_most(budget)
        self.problem = budget
        self.settled: Settled | None = None
        self.pruned: PrunedChannels | None = None

    def _open(self, mover: nn.Module) -> None:
        """Let the quantizers run at the bits, and the network hold what moves them."""
        self.widths.attach(self.net)
        self.net.add_module(self.mover, mover.to(next(self.net.parameters()).device))

    @abstractmethod
    def update_bits(self, done: float) -> None:
        """Move the bits, after each update of the parameters.

        Args:
            done: share of the search that is over, from 0 to 1.
        """

    @abstractmethod
    def rounded(self) -> tuple[dict[Width, int], Channels]:
        """Whole bits of every width, and of channels, that keep to the limits."""

    @property
    def is_open(self) -> bool:
        """Whether bits are still learned."""
        return self.mover in self.net._modules

    def _hold_pruned(self) -> None:
        if self.pruned is not None:
            self.pruned.hold()

    def _check_done(self, done: float) -> None:
        if not 0 <= done <= 1:
            raise ConfigError(f"done: expected a share from 0 to 1, got {done!r}")

    @torch.no_grad()
    def ratio(self) -> float:
        """Cost over budget at the bits as they are; of whole ones, once they are that."""
        return self._ratios()[0].item()

    def bits(self) -> dict[str, float]:
        """``layer1.conv1 weight`` -> its bits now; of channels the mean."""
        return self.widths.numbers()

    @torch.no_grad()
    def settle(self) -> Settled:
        """Make all bits whole, within the budget; the network is of these bits from here on.

        Returns:
            What was found.

        Warns:
            UniformBitsWarning: it is a uniform network, which needed no search.

        Raises:
            ConfigError: it was done before.
        """
        if not self.is_open:
            raise ConfigError("settle: expected a search that is open, got one that has settled")
        chosen, channels = self.found(stacklevel=3)
        return self._fix(chosen, channels, self.ratio(), self.bits())

    def found(self, stacklevel: int = 2) -> tuple[dict[Width, int], Channels]:
        """What `settle` would make the bits now; the network stays open.

        Args:
            stacklevel: of the warning, as in `warnings.warn`.

        Warns:
            UniformBitsWarning: they are those of a uniform network, which needed no search.
        """
        chosen, channels = self.rounded()
        if is_uniform(self.problem, chosen, channels):
            warnings.warn(
                f"the search ended at {next(iter(chosen.values()))} bits everywhere, as a uniform "
                "network has them: expected bits that trade against each other; "
                f"{self.advice}",
                UniformBitsWarning,
                stacklevel=stacklevel,
            )
        return chosen, channels

    def restore(self, values: Mapping[str, Any]) -> Settled:
        """Settle at what another search of the same network found.

        Args:
            values: of `Settled.to_dict`.
        """
        assignment = Assignment.from_dict(values["assignment"])
        chosen = {
            (site, kind): getattr(assignment[site], kind) for site, kind in self.problem.candidates
        }
        channels = {layer: tuple(of) for layer, of in values["channels"].items()}
        return self._fix(chosen, channels, values["ratio"], values["learned"])

    def _fix(
        self,
        chosen: Mapping[Width, int],
        channels: Channels,
        ratio: float,
        learned: Mapping[str, float],
    ) -> Settled:
        bits = self.net.bits[0]
        counted = self.widths.counted(channels)
        allocation = allocation_of(self.problem, chosen, bits, self.strategy, counted=counted)
        self.settled = Settled(allocation, channels, ratio, learned)
        self.widths.set(chosen, channels)
        self.pruned = self.settle_copy(self.net)
        return self.settled

    def settle_copy(self, net: MultiQuantNet) -> PrunedChannels:
        """Fix what was found in a copy of the network that was made while bits were learned.

        Args:
            net: such as a moving average.

        Returns:
            What keeps pruned channels at 0 while it trains.
        """
        assert self.settled is not None
        self.close(net)
        settle(net, self.settled.allocation.assignment, self.settled.channels)
        pruned = PrunedChannels(net, self.settled.channels)
        pruned.hold()
        return pruned

    def close(self, net: MultiQuantNet | None = None) -> None:
        """Give the network back as it was, at its bits of before; nothing is rounded.

        Args:
            net: a copy of it; default: itself.
        """
        net = self.net if net is None else net
        self.widths.detach(net)
        delattr(net, self.mover)

    def _ratios(self) -> tuple[Tensor, Tensor]:
        """Cost over budget, and by how much further resources are above their limits."""
        first, *others = (
            cost / limit
            for cost, limit in zip(self.widths.cost(), self.problem.limits, strict=True)
            if isfinite(limit)
        )
        excess = [(ratio - 1).clamp(min=0) for ratio in others]
        return first, sum(excess, first.new_zeros(()))


def _settled_copy(net: MultiQuantNet, assignment: Assignment) -> MultiQuantNet:
    """The network at an assignment, for costs that depend on its weights."""
    twin = copied(net, {}).eval()
    settle(twin, assignment)
    return twin
