"""Weights whose output channels have bit-widths of their own; 0 bits are a pruned channel."""

from collections.abc import Sequence

import torch
from torch import Tensor

from brevitas_multiquant.core.grids import Grid, Numbers, odd
from brevitas_multiquant.core.panel import Dial, Panel
from brevitas_multiquant.core.selection import MAX_BITS
from brevitas_multiquant.errors import BitWidthError
from brevitas_multiquant.quant.member import (
    Member,
    has_no_sites,
    stays_as_it_is,
    stores_nothing,
)


class ChannelBits(Member):
    """A grid ``odd(b)`` for each output channel: what a `WeightCodes` has in place of one grid.

    The bits are in the state dict. A channel of 0 bits has the integer 0 alone, and no gradient.

    Args:
        bits: of each output channel.
        dims: of the weight tensor.

    Raises:
        BitWidthError: bits outside 0 to 16, or no channel with any.

    Example:
        >>> grids = ChannelBits([2, 0, 4], dims=4)
        >>> print(grids.grid, grids.levels.flatten().tolist(), grids.mean_bits)
        odd (-15, -13, ..., 15) [3.0, 0.0, 15.0] 2.0
    """

    stored = stores_nothing  # a file's header tells the bits
    frozen = stays_as_it_is
    sites = has_no_sites

    bits: Tensor
    levels: Tensor

    def __init__(self, bits: Sequence[int], dims: int) -> None:
        super().__init__()
        column = (-1, *(1,) * (dims - 1))
        self.register_buffer("bits", torch.tensor(bits).view(column))
        self.register_buffer("levels", torch.zeros(self.bits.shape), persistent=False)
        self._follow()

    def _follow(self) -> None:
        """What depends on the bits."""
        if not 0 <= int(self.bits.min()) <= int(self.bits.max()) <= MAX_BITS or not self.bits.any():
            raise BitWidthError(
                f"channels: expected 0 to {MAX_BITS} bits each, and one with some, got "
                f"{self.bits.flatten().tolist()}"
            )
        self.grid = self.finest = odd(int(self.bits.max()))
        self.levels = (torch.exp2(self.bits.float()) - 1).to(self.levels.device)

    @property
    def all_grids(self) -> tuple[Grid, ...]:
        """The finest: it has the integers of all of them, and no channel runs at another."""
        return (self.grid,)

    @property
    def channel_bits(self) -> tuple[int, ...]:
        """Of each output channel."""
        return tuple(self.bits.flatten().tolist())

    @property
    def divisor(self) -> Tensor:
        """Integers divided by it are real weights; 1 where all of them are 0."""
        return self.levels.clamp(min=1)

    @property
    def mean_bits(self) -> float:
        """Bits of a weight, on average."""
        return int(self.bits.sum()) / self.bits.numel()

    @property
    def pruned(self) -> Tensor:
        """Which channels have no bits: (C,)."""
        return self.bits.flatten() == 0

    def numbers(self) -> Numbers:
        """Of each channel's grid, all as tensors."""
        return Numbers(self.levels, -self.levels, 1, self.levels, self.grid.integer_bits)

    def look_at(self, dial: Dial | Panel) -> None:
        """No dial changes it."""

    def _load_from_state_dict(self, *args: object, **kwargs: object) -> None:
        super()._load_from_state_dict(*args, **kwargs)  # type: ignore[arg-type]
        self._follow()
