"""Bits of weights that are grown and dropped one by one while the network trains: CSQ.

CSQ (Xiao et al., arXiv:2212.02770): weights are sums of soft bits (`quant.bit_planes`), every bit
of a layer has a mask m, and the loss has a term ``strength (C/T - 1) sum of m``, whose coefficient
changes its sign at the budget: above it all masks are drawn down, below it up, and the loss decides
which ones go first. The temperature rises as ``200**done``. Bits of a layer are its open masks.

Different from the published code: the cost of the open bits takes the place of their share, so that
any budget holds; the sum is of m and not of its magnitude, so that a bit that was dropped is drawn
up again; masks have a learning rate of their own; and activations, of which CSQ learns nothing,
have the most bits that all layers can have within the budget.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from brevitas_multiquant.allocation.budget import Budget
from brevitas_multiquant.allocation.learned_widths import TINY, Channels, LearnedWidths
from brevitas_multiquant.allocation.policies import require_numbers
from brevitas_multiquant.allocation.problem import Candidates, Pin, Problem
from brevitas_multiquant.allocation.rounding import round_to_budget
from brevitas_multiquant.allocation.search_task import Search
from brevitas_multiquant.allocation.sites import WEIGHT, Width
from brevitas_multiquant.core.panel import Dial
from brevitas_multiquant.nn.network import MultiQuantNet
from brevitas_multiquant.quant.bit_planes import BitPlaneWeights, Masks, harden, soften
from brevitas_multiquant.quant.layers import CodeLayer
from brevitas_multiquant.quant.learned_bits import unlearn
from brevitas_multiquant.training.task import BitWidthLoss

HOTTEST = 200.0
"""T at the end."""


class BitPlaneSearch(Search):
    """The training task of a search that drops and grows single bits of weights.

    As `brevitas_multiquant.allocation.BitSearch`; make the optimizers after it, as it brings the
    parameters that take the place of the weights. No recipe has it: what optimizers know of these
    is lost when bits are whole.

    Args:
        net: of the method ``"individual"``, at the most bits that anything may get.
        budget: the most it may cost, or a whole problem.
        strength: of the term in the cost.
        rate: of the masks' gradient descent.
        candidates: bits that may be chosen.
        pins: name or glob of layers or sites -> bits that are no choice.
        groups: names or globs of sites that get the same bits.
        criterion: (logits, target) -> scalar; default cross entropy.
        input_shape: of images; default: the shape that the network was built with.

    Raises:
        NetworkError, ConfigError, BudgetError, BitWidthError: as of `BitSearch`; a strength or
            rate that is no positive number.
    """

    strategy = "csq"
    advice = "search for longer, or with another budget"
    mover = "masks"

    def __init__(
        self,
        net: MultiQuantNet,
        budget: Budget | Problem,
        *,
        strength: float = 1.0,
        rate: float = 0.05,
        candidates: Candidates = tuple(range(2, 9)),
        pins: Mapping[str, Pin] | None = None,
        groups: Sequence[Sequence[str]] = (),
        criterion: Callable[[Tensor, Tensor], Tensor] | None = None,
        input_shape: tuple[int, ...] | None = None,
    ) -> None:
        require_numbers(strength=strength, rate=rate)
        super().__init__(
            net,
            budget,
            candidates=candidates,
            pins=pins,
            groups=groups,
            criterion=criterion,
            input_shape=input_shape,
        )
        self.strength, self.rate = strength, rate
        _, uniform = self.problem.require_uniform(self.strategy)
        free = {
            width: of if width[1] == WEIGHT else (uniform[width],)
            for width, of in self.problem.candidates.items()
        }
        self.problem = replace(self.problem, candidates=free)
        most = float(max(of[-1] for of in free.values()))
        self.widths = LearnedWidths(self.problem, most, by_gradient=False)
        self.rows = [w for w, of in free.items() if w[1] == WEIGHT and len(of) > 1]
        self._open(Masks(len(self.rows), int(most)))
        for layer, row in self._layers(net):
            unlearn(layer.weight_quant.tensor_quant)
            soften(layer.weight_quant.tensor_quant, layer.effective_weight(), self.masks, row)

    @property
    def masks(self) -> Masks:
        """m, while bits are open."""
        own = self.net.get_submodule(self.mover)
        assert isinstance(own, Masks)
        return own

    def losses(
        self, images: Tensor, target: Tensor, chosen: Sequence[int] | None = None
    ) -> Iterator[BitWidthLoss]:
        """The criterion's loss, and while bits are open what the budget adds to it."""
        for part in super().losses(images, target, chosen):
            term = self._budget_term() if self.is_open else 0.0
            yield part._replace(loss=part.loss + term)

    def _budget_term(self) -> Tensor:
        """``strength (C/T - 1) sum of m``, C of the open bits."""
        return self.strength * (self.ratio() - 1) * self.masks.values.sum()

    @torch.no_grad()
    def update_bits(self, done: float) -> None:
        """Move the masks by their gradients, and raise the temperature.

        Raises:
            ConfigError: ``done`` outside of 0 to 1 while bits are open.
        """
        self._hold_pruned()
        if not self.is_open:
            return
        self._check_done(done)
        masks = self.masks
        if masks.values.grad is not None:
            masks.values.sub_(masks.values.grad, alpha=self.rate)
            masks.values.grad = None
        masks.temperature.fill_(HOTTEST**done)
        for width, live in zip(self.rows, masks.live().tolist(), strict=True):
            bits = self.widths.shared[width]
            bits.value.fill_(min(max(live, bits.candidates[0]), bits.candidates[-1]))

    def rounded(self) -> tuple[dict[Width, int], Channels]:
        """The open bits of each; steps to the budget in the order of the masks."""
        ordered = self.masks.values.detach().sort(1, descending=True).values.tolist()
        masks = dict(zip(self.rows, ordered, strict=True))

        def gain(width: Any, low: int, high: int) -> float:
            own = masks.get(width)
            top = 0.0 if own is None else max(own[low : high + 1], default=0.0)
            return max(float(torch.sigmoid(torch.tensor(top))), TINY)

        start: dict[Any, float] = {w: bits.value.item() for w, bits in self.widths.shared.items()}
        arguments = (self.problem.candidates, self.problem.terms, self.problem.limits, gain)
        return round_to_budget(start, *arguments), {}

    def close(self, net: MultiQuantNet | None = None) -> None:
        """Give the network back at its bits of before; its weights are those of the soft bits."""
        net = self.net if net is None else net
        for layer, _ in self._layers(net):
            quantizer = layer.weight_quant.tensor_quant
            assert isinstance(quantizer, BitPlaneWeights)
            harden(quantizer, layer.weight)
        super().close(net)

    def _layers(self, net: MultiQuantNet) -> Iterator[tuple[Any, int]]:
        """Layers whose weights are soft, each with its row of the masks."""
        for branch in net.branches:
            for layer in branch.modules():
                if isinstance(layer, CodeLayer) and isinstance(layer.input_dial, Dial):
                    first = self.problem.same[layer.input_dial.site, WEIGHT]
                    if first in self.rows:
                        yield layer, self.rows.index(first)
