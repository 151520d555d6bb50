"""Bit-widths chosen by gates, within a budget: Bayesian Bits (van Baalen et al., NeurIPS 2020).

Each candidate but the first stands behind a gate, and in front of all of them each output channel
may have one that prunes it. In training gates are drawn, hard concrete ones; learned are the
probabilities with which they are open. The loss has a term in the expected cost, in any unit of a
`Budget`: where it is bilinear, as BitOPs and bytes are, that is the cost at the expected bits.

Shared with FracBits (`allocation.bit_search`), and so different from the published code: the
controller that holds the budget, where a factor mu has to be found; probabilities and their rate in
place of logits and Adam; a start near the budget in place of all gates open; and how bits become
whole, from their expectation by the steps that fit. As there a tensor has one bit-width for all
layers that read it. Channels are pruned where their gate is closed in evaluation, as published.
"""

import random
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from brevitas_multiquant.allocation.bit_search import BitSearch
from brevitas_multiquant.allocation.budget import Budget
from brevitas_multiquant.allocation.problem import Candidates, Problem
from brevitas_multiquant.errors import ConfigError
from brevitas_multiquant.nn.network import MultiQuantNet
from brevitas_multiquant.quant.gated_bits import GatedBits
from brevitas_multiquant.training.task import BitWidthLoss

PUBLISHED = (2, 4, 8)


class GateSearch(BitSearch):
    """The training task of a search by gates; its arguments are those of `BitSearch`.

    Call `at` before every step: what is drawn is a function of the place in the run.

    Args:
        net: of the method ``"individual"``, at the most bits that anything may get.
        budget: the most it may cost; or a whole problem.
        candidates: bits that may be chosen; 2, 4 and 8 as published.
        **options: of `BitSearch`; ``channels`` are these candidates, or 0 and these for gates that
            prune.

    Raises:
        ConfigError: as of `BitSearch`; a step that it was not told the place of.

    Example:
        >>> from torchvision.models import resnet18
        >>> from brevitas_multiquant import calibrate, multiquantize
        >>> net = multiquantize(
        ...     resnet18(num_classes=10), [8], method="individual", input_shape=(1, 3, 32, 32)
        ... )
        >>> images, labels = torch.rand(4, 3, 32, 32), torch.arange(4)
        >>> calibrate(net, [images])
        >>> search = GateSearch(net, Budget(uniform=4), channels=(0, 2, 4, 8))
        >>> for step in range(2):
        ...     search.at(epoch=0, epochs=1, step=step)
        ...     search(images, labels)["loss"].backward()
        ...     search.update_bits(done=step / 2)
        >>> settled = search.settle()
        >>> {bits for of in settled.channels.values() for bits in of} <= {0, 2, 4, 8}
        True
    """

    strategy = "bayesian_bits"
    kind = GatedBits

    def __init__(
        self,
        net: MultiQuantNet,
        budget: Budget | Problem,
        *,
        candidates: Candidates = PUBLISHED,
        **options: Any,
    ) -> None:
        super().__init__(net, budget, candidates=candidates, **options)
        self._place: tuple[int, ...] | None = None

    def at(self, epoch: int, epochs: int, step: int, seed: int = 0) -> None:
        """Be told where in its training the network is, before every step."""
        self._place = seed, epoch, step

    def losses(
        self, images: Tensor, target: Tensor, chosen: Sequence[int] | None = None
    ) -> Iterator[BitWidthLoss]:
        """The loss at drawn gates, and what the budget adds to it."""
        if self.is_open and torch.is_grad_enabled():
            self._draw()
        yield from super().losses(images, target, chosen)

    def _draw(self) -> None:
        if self._place is None:
            raise ConfigError(
                "GateSearch: expected to know the step, of which the drawn gates are a function, "
                "got one before any at(epoch, epochs, step): call it before every step"
            )
        seed = random.Random(str(self._place)).getrandbits(63)
        generator = torch.Generator().manual_seed(seed)
        for bits in self.widths.each():
            if isinstance(bits, GatedBits):
                bits.draw(generator)
