"""Bit-widths that gates choose, and the gates: hard concrete ones, as of Bayesian Bits."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from brevitas_multiquant.core.gated import gate_shares, gated_activation, gated_weight
from brevitas_multiquant.quant.learned_bits import Lane, LearnedBits

TEMPERATURE, LOWEST, HIGHEST = 2 / 3, -0.1, 1.1
"""Of the hard concrete distribution (Louizos et al., ICLR 2018), as Bayesian Bits has them."""

OPEN = 0.66
"""A gate counts as open where it is with a larger probability (published: closed below 0.34)."""

MARGIN = 0.01
"""Probabilities stay this far from 0 and 1, where gates would be decided for good."""

KEPT = 0.9
"""How likely channels are kept at the start."""


class GatedBits(LearnedBits):
    """Gates between candidates, each behind those before it; the first candidate has none.

    Learned are the probabilities with which gates are open. In training each is drawn from the hard
    concrete distribution that has it, anew with every `draw`; in evaluation a gate is open or shut.
    With the candidate 0 each channel has a gate of its own in front of the others, which are one
    for the tensor.

    Args:
        candidates: whole bits, ascending.
        start: expected bits of a tensor at the start, all gates alike.
        shape: ``()``, or ``(C, 1, ...)``: of the gates of channels.
        is_learned: as there are several candidates; there are no gates for one.

    Attributes:
        open: (n,), of each further candidate of the tensor.
        kept: ``shape``, of channels; None where all of them stay.

    Example:
        >>> gates = GatedBits([2, 4, 8], 3.0)
        >>> round(gates.value.item(), 4), gates.set(4), gates.value.item()
        (3.0, None, 4.0)
    """

    kept: Tensor | None
    noise: Tensor

    def __init__(
        self,
        candidates: Sequence[int],
        start: float,
        shape: tuple[int, ...] = (),
        is_learned: bool = True,
    ) -> None:
        super().__init__(candidates)
        assert is_learned, "nothing to choose from"
        self.bits = tuple(one for one in self.candidates if one)
        steps = [high - low for low, high in zip(self.bits, self.bits[1:], strict=False)]
        self.steps = (self.bits[0], *steps)
        self.open = nn.Parameter(torch.full((len(steps),), _alike(self.steps, start)))
        prunes = self.candidates[0] == 0
        self.kept = nn.Parameter(torch.full(shape, KEPT)) if prunes else None
        count = sum(gates.numel() for gates, _ in self.learned())
        self.register_buffer("noise", torch.full((count,), 0.5), persistent=False)
        self._channels = shape[0] if shape else 1

    def learned(self) -> list[tuple[Tensor, int]]:
        """Its gates."""
        of_channels = [] if self.kept is None else [(self.kept, self.kept.numel())]
        return [(self.open, 1), *of_channels]

    @property
    def value(self) -> Tensor:
        """Expected bits, differentiable: of a tensor, or of each channel."""
        return self._of_tensor() if self.kept is None else self._of_tensor() * self.kept

    def _of_tensor(self) -> Tensor:
        """Expected bits of channels that are kept."""
        reached = torch.cat([self.open.new_ones(1), self.open]).cumprod(0)
        return (reached * reached.new_tensor(self.steps)).sum()

    @torch.no_grad()
    def project(self) -> None:
        """Probabilities back between `MARGIN` and 1 minus that."""
        for gates, _ in self.learned():
            gates.clamp_(MARGIN, 1 - MARGIN)

    @torch.no_grad()
    def set(self, bits: int | Sequence[int]) -> None:
        """Open the gates of whole bits: of a tensor, or of its channels, alike but for 0."""
        most = bits if isinstance(bits, int) else max(bits)
        self.open.copy_(self.open.new_tensor([float(one <= most) for one in self.bits[1:]]))
        if self.kept is not None:
            kept = [most] * self.kept.numel() if isinstance(bits, int) else list(bits)
            self.kept.copy_(self.kept.new_tensor(kept).gt(0).view_as(self.kept))

    @torch.no_grad()
    def draw(self, generator: torch.Generator) -> None:
        """New random numbers for the gates; of all gates at their middle before."""
        self.noise.copy_(torch.rand(self.noise.shape, generator=generator))

    def shares(self) -> Tensor:
        """Of each bit-width: (n,), or (n, C, 1, ...)."""
        chances = torch.cat([gates.flatten() for gates, _ in self.learned()])
        gates = self._drawn(chances) if self.training else (chances > OPEN).to(chances)
        of_tensor, of_channels = gates.split([len(self.open), len(gates) - len(self.open)])
        found = gate_shares(torch.cat([gates.new_ones(1), of_tensor]))
        if self.kept is None:
            return found
        return found.view(-1, *(1,) * self.kept.dim()) * of_channels.view_as(self.kept)

    def _drawn(self, chances: Tensor) -> Tensor:
        """Hard concrete gates, of probabilities of being above 0."""
        location = torch.logit(chances, 1e-6) + TEMPERATURE * math.log(-LOWEST / HIGHEST)
        logistic = torch.logit(self.noise, 1e-6)
        stretched = torch.sigmoid((logistic + location) / TEMPERATURE) * (HIGHEST - LOWEST)
        return (stretched + LOWEST).clamp(0, 1)

    def activations(self, x: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
        """Values in [0, 1]."""
        return gated_activation(x, lower, upper, self.shares(), self.bits)

    def weights(self, weight: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
        """Values in [-1, 1]."""
        return gated_weight(weight, lower, upper, self.shares(), self.bits)

    def lanes(self) -> list[Lane]:
        """The channels that are kept, which share their bits; at least the likeliest one is."""
        kept = list(range(self._channels))
        if self.kept is not None:
            chances = self.kept.detach().flatten()
            kept = (chances > OPEN).nonzero().flatten().tolist() or [int(chances.argmax())]
        return [Lane(tuple(kept), self._of_tensor().item(), self.bits)]


def _alike(steps: Sequence[int], expected: float) -> float:
    """One probability for all gates, at which a chain of them has so many bits; by bisection."""
    low, high = MARGIN, 1 - MARGIN
    for _ in range(40):
        middle = (low + high) / 2
        bits = sum(step * middle**index for index, step in enumerate(steps))
        low, high = (low, middle) if bits > expected else (middle, high)
    return low
