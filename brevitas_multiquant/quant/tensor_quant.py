"""Brevitas ``tensor_quant`` modules: trainable range in, integer codes out.

Values are codes: scale 1, zero-point 0 in Brevitas's terms. The paper's factors 1 / (2**b - 1)
and 1 / 3 (for other weight formats 1 / divisor) are applied by the layer (`quant.layers`), once,
after the multiply-accumulate.
"""

from collections.abc import Sequence

import torch
from brevitas.core.utils import StatelessBuffer
from torch import Tensor, nn

from brevitas_multiquant.core.clip_quantize import quantize_activation, quantize_weight
from brevitas_multiquant.core.config import check_choice
from brevitas_multiquant.core.grids import FAMILIES, ODD, Grid, Numbers
from brevitas_multiquant.core.panel import Dial, Panel
from brevitas_multiquant.core.selection import chosen_bits
from brevitas_multiquant.quant.member import (
    Member,
    has_no_sites,
    stays_as_it_is,
    stores_nothing,
)
from brevitas_multiquant.quant.ranges import LearnedRange

QuantArgs = tuple[Tensor, Tensor, Tensor, Tensor]
"""Value, scale, zero-point, bit-width: what a Brevitas proxy expects."""


class _Codes(Member):
    """The range stores itself; layers and quantizers, which hold this, answer for the rest."""

    stored = stores_nothing
    frozen = stays_as_it_is
    sites = has_no_sites

    def __init__(self, range_impl: LearnedRange, bit_width_impl: nn.Module) -> None:
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

    def __init__(self, range_impl: LearnedRange, bit_width_impl: nn.Module, bit_width: int) -> None:
        super().__init__(range_impl, bit_width_impl)
        self.bits = bit_width
        self.overwrites = False

    def forward(self, x: Tensor) -> QuantArgs:
        """Codes of ``x`` (any shape) in [0, 2**bits - 1]."""
        lower, upper = self.range_impl(x)
        bits = self.bits if self.dial is None else self.dial.bits
        codes = quantize_activation(x, lower, upper, bits, overwrite=self.overwrites)
        return self._with_metadata(codes)


class Fixed:
    """One grid, whatever runs.

    Args:
        weight_format: the grid.
    """

    def __init__(self, weight_format: Grid = ODD) -> None:
        self.grid = self.finest = weight_format

    def numbers(self) -> Numbers | None:
        """None: those of the grid."""
        return None


class AtRunTime(Member):
    """A family of grids, of which one runs.

    The numbers of the grid that runs are kept as a tensor besides: a compiled graph reads that,
    and so serves every bit-width. Nothing of it is in the state dict.

    Args:
        family: a name out of `FAMILIES`.
        candidate_bits: bit-widths to choose from; it starts at the largest.

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

    def __init__(self, family: str, candidate_bits: Sequence[int]) -> None:
        super().__init__()
        check_choice("family", family, tuple(FAMILIES))
        self.grids = {bits: FAMILIES[family](bits) for bits in sorted(candidate_bits)}
        self.grid = self.finest = self.grids[max(self.grids)]
        self.register_buffer("row", torch.tensor(self.grid.numbers), persistent=False)

    def switch(self, bits: int) -> None:
        """Choose the grid from here on.

        Raises:
            BitWidthError: none of the candidates.
        """
        (chosen,) = chosen_bits([bits], tuple(self.grids), "weights")
        self.grid = self.grids[chosen]
        # a new tensor: a graph that has yet to run backward keeps the one that it ran forward with
        self.row = self.row.new_tensor(self.grid.numbers)

    def numbers(self) -> Numbers:
        """Of the grid that runs: tensors where a graph is compiled, Python numbers elsewhere."""
        return Numbers(*self.row) if torch.compiler.is_compiling() else self.grid.numbers

    def forward(self) -> Tensor:
        """Bits of the integers, as Brevitas asks for it."""
        return self.row[-1].float()


class WeightCodes(_Codes):
    """Signed codes of weights: the integers of a grid."""

    def __init__(
        self,
        range_impl: LearnedRange,
        bit_width_impl: nn.Module,
        grid_impl: Fixed | AtRunTime,
    ) -> None:
        super().__init__(range_impl, bit_width_impl)
        self.grid_impl = grid_impl

    @property
    def weight_format(self) -> Grid:
        """The grid that runs."""
        return self.grid_impl.grid

    def forward(self, weight: Tensor) -> QuantArgs:
        """Codes of ``weight`` (any shape)."""
        lower, upper = self.range_impl(weight)
        grid, numbers = self.grid_impl.finest, self.grid_impl.numbers()
        return self._with_metadata(quantize_weight(weight, lower, upper, grid, numbers))
