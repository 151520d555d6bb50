"""Brevitas ``tensor_quant`` modules: trainable range in, integer codes out.

Values are codes: scale 1, zero-point 0 in Brevitas's terms. The paper's factors 1 / (2**b - 1)
and 1 / 3 (for other weight formats 1 / divisor) are applied by the layer (`quant.layers`), once,
after the multiply-accumulate.
"""

from collections.abc import Sequence
from typing import Any

import torch
from brevitas.core.utils import StatelessBuffer
from torch import Tensor, nn

from brevitas_multiquant.core.clip_quantize import (
    activation_levels,
    quantize_activation,
    quantize_weight,
)
from brevitas_multiquant.core.config import check_choice
from brevitas_multiquant.core.grids import FAMILIES, ODD, Grid, Numbers, grids_of
from brevitas_multiquant.core.panel import Dial, Panel
from brevitas_multiquant.core.selection import chosen_bits
from brevitas_multiquant.core.told import row_at, told_by
from brevitas_multiquant.quant.member import (
    Member,
    has_no_sites,
    stays_as_it_is,
    stores_nothing,
)

QuantArgs = tuple[Tensor, Tensor, Tensor, Tensor]
"""Value, scale, zero-point, bit-width: what a Brevitas proxy expects."""


class _Codes(Member):
    """The range stores itself; layers and quantizers, which hold this, answer for the rest."""

    stored = stores_nothing
    frozen = stays_as_it_is
    sites = has_no_sites

    def __init__(self, range_impl: Any, bit_width_impl: nn.Module) -> None:
        super().__init__()
        self.range_impl = range_impl
        self.bit_width_impl = bit_width_impl
        self.scale = StatelessBuffer(torch.tensor(1.0))
        self.zero_point = StatelessBuffer(torch.tensor(0.0))

    def _with_metadata(self, codes: Tensor) -> QuantArgs:
        return codes, self.scale(), self.zero_point(), self.bit_width_impl()


class ActivationCodes(_Codes):
    """Unsigned codes of activations: of ``bit_width`` bits, or as many as its dial shows.

    Attributes:
        dial: of the site, in a network.
    """

    dial: Dial | Panel | None = None

    def __init__(self, range_impl: Any, bit_width_impl: nn.Module, bit_width: int) -> None:
        super().__init__(range_impl, bit_width_impl)
        self.bits = bit_width
        self.overwrites = False

    @property
    def active_bits(self) -> int:
        """Bits of the codes now."""
        return self.bits if self.dial is None else self.dial.bits

    @property
    def levels(self) -> int | Tensor:
        """The largest code now: what it stands for is u."""
        told = told_by(self.dial)
        return activation_levels(self.active_bits) if told is None else told.levels

    def forward(self, x: Tensor) -> QuantArgs:
        """Codes of ``x`` (any shape) in [0, 2**bits - 1]."""
        lower, upper = self.range_impl(x)
        told = told_by(self.dial)
        bits, levels = (self.active_bits, None) if told is None else (told.widest, told.levels)
        codes = quantize_activation(x, lower, upper, bits, self.overwrites, levels)
        return self._with_metadata(codes)


class Fixed:
    """One grid, whatever runs.

    Args:
        weight_format: the grid.
    """

    channel_bits: Sequence[int] | None = None
    """Of each output channel, where they differ."""

    mean_bits = pruned = None

    def __init__(self, weight_format: Grid = ODD) -> None:
        self.grid = self.finest = weight_format

    @property
    def all_grids(self) -> tuple[Grid, ...]:
        """The one."""
        return (self.grid,)

    @property
    def divisor(self) -> float:
        """Of the grid."""
        return self.grid.divisor

    def numbers(self) -> Numbers | None:
        """None: those of the grid."""
        return None

    def look_at(self, dial: Dial | Panel) -> None:
        """No dial changes it."""


class AtRunTime(Member):
    """A family of grids, of which one runs.

    The numbers of the grid that runs are kept as a tensor besides: a compiled graph reads that,
    and so serves every bit-width. Nothing of it is in the state dict.

    Args:
        family: a name out of `FAMILIES`.
        candidate_bits: bit-widths to choose from; it starts at the largest.

    Attributes:
        dial: of the site, in a network: it says which one runs.

    Example:
        >>> weights = AtRunTime("centered", [2, 4, 8])
        >>> weights.switch(2)
        >>> print(weights.grid)
        centered (-3, -1, 1, 3)
    """

    stored = stores_nothing
    frozen = stays_as_it_is
    sites = has_no_sites

    row: Tensor
    dial: Dial | Panel | None = None
    channel_bits: Sequence[int] | None = None
    """As of `Fixed`."""
    mean_bits = pruned = None

    def __init__(self, family: str, candidate_bits: Sequence[int]) -> None:
        super().__init__()
        check_choice("family", family, tuple(FAMILIES))
        self.grids = grids_of(family, candidate_bits)
        self.switched = max(self.grids)
        self.finest = self.grids[self.switched]
        self.register_buffer("row", torch.tensor(self.grid.numbers), persistent=False)

    @property
    def all_grids(self) -> tuple[Grid, ...]:
        """Those of the candidates, ascending."""
        return tuple(self.grids.values())

    @property
    def grid(self) -> Grid:
        """The one that runs."""
        return self.grids[self.switched if self.dial is None else self.dial.weight]

    @property
    def divisor(self) -> float | Tensor:
        """Of the grid that runs."""
        told = told_by(self.dial)
        if told is None:
            return self.grid.divisor
        return row_at([float(grid.divisor) for grid in self._by_bits()], told.weight)

    def switch(self, bits: int) -> None:
        """Choose the grid from here on.

        Raises:
            BitWidthError: none of the candidates.
        """
        (chosen,) = chosen_bits([bits], tuple(self.grids), "weights")
        self.switched = chosen
        # a new tensor: a graph that has yet to run backward keeps the one that it ran forward with
        self.row = self.row.new_tensor(self.grid.numbers)

    def look_at(self, dial: Dial | Panel) -> None:
        """Let a dial say which grid runs."""
        self.dial = dial

    def numbers(self) -> Numbers:
        """Of the grid that runs: Python numbers; tensors where one graph serves all grids."""
        row = self._row_of_graph()
        return self.grid.numbers if row is None else Numbers(*row)

    def forward(self) -> Tensor:
        """Bits of the integers, as Brevitas asks for it."""
        row = self._row_of_graph()
        if row is None:
            row = self.row if self.dial is None else self.row.new_tensor(self.grid.numbers)
        return row[-1].float()

    def _row_of_graph(self) -> Tensor | None:
        """The numbers that run, where a graph is compiled that does not know which."""
        if self.dial is None:
            return self.row if torch.compiler.is_compiling() else None
        told = told_by(self.dial)
        return None if told is None else row_at([g.numbers for g in self._by_bits()], told.weight)

    def _by_bits(self) -> list[Grid]:
        """The grid of each bit-width from 0 on; of those that are none, any."""
        return [self.grids.get(bits, self.finest) for bits in range(max(self.grids) + 1)]


class WeightCodes(_Codes):
    """Signed codes of weights: the integers of a grid.

    Attributes:
        are_values: it gives real weights instead, for a layer that reads values.
    """

    are_values = False

    def __init__(
        self,
        range_impl: Any,
        bit_width_impl: nn.Module,
        grid_impl: Fixed | AtRunTime,
    ) -> None:
        super().__init__(range_impl, bit_width_impl)
        self.grid_impl = grid_impl

    @property
    def are_whole(self) -> bool:
        """Whether what it gives are integers."""
        return True

    @property
    def weight_format(self) -> Grid:
        """The grid that runs; of several, the finest."""
        return self.grid_impl.grid

    @property
    def mean_bits(self) -> float | None:
        """Bits of a weight on average, where channels have their own; else None."""
        return self.grid_impl.mean_bits

    @property
    def pruned(self) -> Tensor | None:
        """Which output channels have no bits, where channels have their own."""
        return self.grid_impl.pruned

    @property
    def divisor(self) -> float | Tensor:
        """Codes divided by it are real weights; a tensor where channels have their own grids."""
        return self.grid_impl.divisor

    def forward(self, weight: Tensor) -> QuantArgs:
        """Codes of ``weight`` (any shape)."""
        values, lower, upper = self.range_impl.placed(weight)
        grid, numbers = self.grid_impl.finest, self.grid_impl.numbers()
        codes = quantize_weight(values, lower, upper, grid, numbers)
        return self._with_metadata(codes.to(weight.dtype) if grid.levels <= 255 else codes)
