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

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from brevitas_multiquant.allocation.budget import Budget
from brevitas_multiquant.allocation.ends import uniform_bits
from brevitas_multiquant.allocation.learned_widths import (
    Channels,
    Kind,
    LearnedWidths,
    between_whole_bits,
)
from brevitas_multiquant.allocation.problem import Candidates, Pin, Problem
from brevitas_multiquant.allocation.regularisers import Controller, Regulariser
from brevitas_multiquant.allocation.search_task import Search, Settled
from brevitas_multiquant.allocation.searchable import require_positive
from brevitas_multiquant.allocation.sites import Width
from brevitas_multiquant.nn.network import MultiQuantNet
from brevitas_multiquant.quant.learned_bits import RealBits
from brevitas_multiquant.training.task import BitWidthLoss

__all__ = ["BitSearch", "Settled"]

HEADROOM = 0.5
"""Bits start this much above the uniform ones that cost the budget (published configurations)."""
SLOWEST = 0.1
"""The share of its learning rate that bits end with."""


class BitSearch(Search):
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

    strategy = "fracbits"
    advice = "take the Controller as regulariser, or a larger rate or budget"
    mover = "regulariser"
    kind: ClassVar[Kind] = RealBits
    """What a bit-width is."""

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
        super().__init__(
            net,
            budget,
            candidates=candidates,
            pins=pins,
            groups=groups,
            criterion=criterion,
            input_shape=input_shape,
        )
        require_positive(start=start, rate=rate)
        self.problem = between_whole_bits(self.problem)
        own = Controller() if regulariser is None else regulariser
        self.rate = getattr(own, "rate", 0.02) if rate is None else rate
        if start is None:
            start = uniform_bits(self.problem) + HEADROOM
        self.widths = LearnedWidths(self.problem, start, channels, kind=type(self).kind)
        self._open(own)
        self.speed = self.rate / self._sensitivity()
        self._ratio: Tensor | None = None

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
        self._hold_pruned()
        if not self.is_open:
            return
        self._check_done(done)
        if self._ratio is None:
            return
        rate = self.speed * (1 - (1 - SLOWEST) * done)
        for value, share_it in self.widths.learned():
            if value.grad is not None:
                value -= rate * share_it * value.grad
                value.grad = None
        for bits in self.widths.each():
            bits.project()
        self.regulariser.observe(self._ratio)

    def rounded(self) -> tuple[dict[Width, int], Channels]:
        """As of `LearnedWidths.rounded`."""
        return self.widths.rounded()

    def _sensitivity(self) -> float:
        """By what a unit of rate changes cost over budget in an update, where bits start."""
        learned = self.widths.learned()
        gradients = torch.autograd.grad(self._ratios()[0], [value for value, _ in learned])
        pairs = zip(gradients, learned, strict=True)
        return float(sum(share_it * g.square().sum().item() for g, (_, share_it) in pairs))
