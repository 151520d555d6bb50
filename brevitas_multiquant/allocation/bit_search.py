"""Bit-widths learned by gradient, within a budget: FracBits (Yang and Jin, AAAI 2021).

Every site of a network of one body gets a real-valued bit-width for its activations, and one for
the weights that read it or, kernel by kernel, one for each output channel. The loss has a term in
the cost of all of them. `BitSearch.settle` makes them whole, never above the budget, and leaves a
network of the method ``"individual"`` that trains on: the same modules, the same parameters.

Different from the published code, on purpose: the term is free of units, and a controller holds the
budget (`allocation.regularisers`); bits have a learning rate of their own; there is a task gradient
at whole bits too (`core.fractional`); a tensor has one bit-width for all layers that read it, and
so have their weights; ranges are learned, in place of tanh with a maximum and of PACT.
"""

import copy
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import isfinite
from typing import Any

import torch
from torch import Tensor

from brevitas_multiquant.allocation.allocation import Allocation
from brevitas_multiquant.allocation.budget import Budget
from brevitas_multiquant.allocation.ends import is_uniform, require_below_the_most, uniform_bits
from brevitas_multiquant.allocation.learned_widths import (
    Channels,
    LearnedWidths,
    between_whole_bits,
)
from brevitas_multiquant.allocation.problem import Candidates, Pin, Problem, problem_of
from brevitas_multiquant.allocation.pruned import PrunedChannels
from brevitas_multiquant.allocation.regularisers import Controller, Regulariser
from brevitas_multiquant.allocation.report import allocation_of
from brevitas_multiquant.allocation.searchable import require_positive, require_searchable
from brevitas_multiquant.allocation.sites import Width, sites_of
from brevitas_multiquant.core.precision import Assignment
from brevitas_multiquant.errors import ConfigError, UniformBitsWarning
from brevitas_multiquant.methods.settle import settle
from brevitas_multiquant.nn.network import MultiQuantNet
from brevitas_multiquant.training.task import BitWidthLoss, Objective, TrainingTask

STRATEGY = "fracbits"
HEADROOM = 0.5
"""Bits start this much above the uniform ones that cost the budget (published configurations)."""
SLOWEST = 0.1
"""The share of its learning rate that bits end with."""


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
        """Plain values that JSON can hold, of which `BitSearch.restore` makes it again."""
        return {
            "assignment": self.allocation.assignment.to_dict(),
            "channels": {layer: list(of) for layer, of in self.channels.items()},
            "ratio": self.ratio,
            "learned": dict(self.learned),
        }


class BitSearch(TrainingTask):
    """The training task of a search: cross entropy, and a term in the cost of the bits.

    From here on until `settle` the network runs at real-valued bits, mixing the values of two
    bit-widths; they are in its state dict, and no file but a checkpoint holds it. After each update
    of the parameters call `update_bits`, which moves the bits; afterwards the task is plain
    training.

    Args:
        net: of the method ``"individual"``, at the most bits that anything may get: ranges, norms
            and the sums of the profile ``finn`` are those of it. Calibrate it before.
        budget: the most it may cost; or a whole problem, which says all up to ``groups``.
        candidates: bits that may be chosen, or a mapping of ``"weight"`` and ``"activation"`` to
            them; bits stay between the first and the last, and end as one of them.
        pins: name or glob of layers or sites -> bits that are no choice, as of
            `brevitas_multiquant.allocation.allocate`.
        groups: names or globs of sites that get the same bits; with ``channels`` those of their
            activations.
        channels: learn the bits of every output channel, out of these candidates; 0 prunes.
        start: where all bits start, or at the nearest of their candidates; default: half a bit
            above uniform ones that cost the budget.
        regulariser: cost over budget -> term of the loss; default `Controller`.
        rate: by how much an update changes cost over budget under a multiplier of 1; default: that
            of the controller, or 0.02 for another regulariser.
        criterion: (logits, target) -> scalar; default cross entropy.
        input_shape: of images; default: the shape that the network was built with.

    Raises:
        NetworkError: a wrapped network, or none.
        ConfigError: a network of another method, one that is searched already, or a start or rate
            that is no positive number.
        BudgetError: a budget that no bits keep to, or that all keep to.
        BitWidthError: candidates, channels, pins or groups that cannot be.

    Example:
        >>> from torchvision.models import resnet18
        >>> from brevitas_multiquant import calibrate, multiquantize
        >>> net = multiquantize(
        ...     resnet18(num_classes=10), [8], method="individual", input_shape=(1, 3, 32, 32)
        ... )
        >>> images, labels = torch.rand(4, 3, 32, 32), torch.arange(4)
        >>> calibrate(net, [images])
        >>> search = BitSearch(net, Budget(uniform=3))
        >>> weights = torch.optim.SGD(net.model_parameters(), 0.01)
        >>> for step in range(2):
        ...     weights.zero_grad()
        ...     search(images, labels)["loss"].backward()
        ...     weights.step()
        ...     search.update_bits(done=step / 2)
        >>> allocation = search.settle().allocation
        >>> allocation.cost <= allocation.budget, net.assignment == allocation.assignment
        (True, True)
    """

    def __init__(
        self,
        net: MultiQuantNet,
        budget: Budget | Problem,
        *,
        candidates: Candidates = tuple(range(2, 9)),
        pins: Mapping[str, Pin] | None = None,
        groups: Sequence[Sequence[str]] = (),
        channels: Sequence[int] | None = None,
        start: float | None = None,
        regulariser: Regulariser | None = None,
        rate: float | None = None,
        criterion: Callable[[Tensor, Tensor], Tensor] | None = None,
        input_shape: tuple[int, ...] | None = None,
    ) -> None:
        super().__init__(net, Objective(), criterion=criterion)
        require_searchable(net)
        require_positive(start=start, rate=rate)
        if not isinstance(budget, Problem):
            shape = input_shape or net.input_shape or (1, 3, 224, 224)
            at = partial(_settled_copy, net)
            sites = sites_of(net, shape, net.bits[0], None, at=at, takes_any_bits=True)
            budget = problem_of(sites, budget, candidates, pins or {}, groups)
        self.problem = between_whole_bits(budget)
        require_below_the_most(self.problem)
        own = Controller() if regulariser is None else regulariser
        self.rate = getattr(own, "rate", 0.02) if rate is None else rate
        if start is None:
            start = uniform_bits(self.problem) + HEADROOM
        self.widths = LearnedWidths(self.problem, start, channels)
        self.widths.attach(net)
        net.add_module("regulariser", own.to(next(net.parameters()).device))
        self.speed = self.rate / self._sensitivity()
        self._ratio: Tensor | None = None
        self.settled: Settled | None = None
        self.pruned: PrunedChannels | None = None

    @property
    def is_open(self) -> bool:
        """Whether bits are still learned."""
        return "regulariser" in self.net._modules

    @property
    def regulariser(self) -> Regulariser:
        """What the budget adds to the loss, while bits are learned."""
        own = self.net.get_submodule("regulariser")
        assert isinstance(own, Regulariser)
        return own

    def losses(
        self, images: Tensor, target: Tensor, chosen: Sequence[int] | None = None
    ) -> Iterator[BitWidthLoss]:
        """The criterion's loss, and while bits are learned what the budget adds to it."""
        for part in super().losses(images, target, chosen):
            yield part._replace(loss=part.loss + self._budget_term()) if self.is_open else part

    def _budget_term(self) -> Tensor:
        ratio, excess = self._ratios()
        self._ratio = ratio.detach()
        term: Tensor = self.regulariser(ratio) + excess
        return term

    @torch.no_grad()
    def update_bits(self, done: float) -> None:
        """Move the bits by their gradients, and the regulariser by where the update started.

        Plain gradient descent: the rate falls linearly to a tenth, and bits stay between their
        first and last candidate. Each channel of a layer moves as fast as one bit-width of all of
        them would: its gradient is as much smaller as there are channels. Once bits are whole,
        pruned channels are kept at 0, nothing else.

        Args:
            done: share of the search that is over, from 0 to 1; whatever it is once bits are whole.

        Raises:
            ConfigError: another share while bits are learned.
        """
        if self.pruned is not None:
            self.pruned.hold()
        if not self.is_open:
            return
        if not 0 <= done <= 1:
            raise ConfigError(f"done: expected a share from 0 to 1, got {done!r}")
        if self._ratio is None:
            return
        rate = self.speed * (1 - (1 - SLOWEST) * done)
        for value in self.widths.parameters():
            if value.grad is not None:
                value -= rate * value.numel() * value.grad
                value.grad = None
        for bits in self.widths.each():
            bits.project()
        self.regulariser.observe(self._ratio)

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
        chosen, channels = self.widths.rounded()
        settled = self._fix(chosen, channels, self.ratio(), self.bits())
        if is_uniform(self.problem, chosen, channels):
            warnings.warn(
                f"the search ended at {next(iter(chosen.values()))} bits everywhere, as a uniform "
                "network has them: expected bits that trade against each other; take the "
                "Controller as regulariser, or a larger rate or budget",
                UniformBitsWarning,
                stacklevel=2,
            )
        return settled

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
        allocation = allocation_of(self.problem, chosen, bits, STRATEGY, counted=counted)
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
        del net.regulariser

    def _ratios(self) -> tuple[Tensor, Tensor]:
        """Cost over budget, and by how much further resources are above their limits."""
        first, *others = (
            cost / limit
            for cost, limit in zip(self.widths.cost(), self.problem.limits, strict=True)
            if isfinite(limit)
        )
        excess = [(ratio - 1).clamp(min=0) for ratio in others]
        return first, sum(excess, first.new_zeros(()))

    def _sensitivity(self) -> float:
        """By what a unit of rate changes cost over budget in an update, where bits start."""
        gradients = torch.autograd.grad(self._ratios()[0], self.widths.parameters())
        return float(sum(g.numel() * g.square().sum().item() for g in gradients))


def _settled_copy(net: MultiQuantNet, assignment: Assignment) -> MultiQuantNet:
    """The network at an assignment, for costs that depend on its weights."""
    twin = copy.deepcopy(net).eval()
    settle(twin, assignment)
    return twin
