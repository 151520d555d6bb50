"""Brevitas ``tensor_quant`` modules: trainable range in, integer codes out.

Values are codes: scale 1, zero-point 0 in Brevitas's terms. The paper's factors 1 / (2**b - 1)
and 1 / 3 (for other weight formats 1 / divisor) are applied by the layer (`quant.layers`), once,
after the multiply-accumulate.
"""

import torch
from brevitas.core.utils import StatelessBuffer
from torch import Tensor, nn

from brevitas_multiquant.core.clip_quantize import quantize_activation, quantize_weight
from brevitas_multiquant.core.grids import ODD, WeightFormat
from brevitas_multiquant.quant.ranges import LearnedRange

QuantArgs = tuple[Tensor, Tensor, Tensor, Tensor]
"""Value, scale, zero-point, bit-width: what a Brevitas proxy expects."""


class _Codes(nn.Module):
    def __init__(self, range_impl: LearnedRange, bit_width_impl: nn.Module) -> None:
        super().__init__()
        self.range_impl = range_impl
        self.bit_width_impl = bit_width_impl
        self.scale = StatelessBuffer(torch.tensor(1.0))
        self.zero_point = StatelessBuffer(torch.tensor(0.0))

    def _with_metadata(self, codes: Tensor) -> QuantArgs:
        return codes, self.scale(), self.zero_point(), self.bit_width_impl()


class ActivationCodes(_Codes):
    """Unsigned ``bit_width``-bit codes of activations."""

    def __init__(self, range_impl: LearnedRange, bit_width_impl: nn.Module, bit_width: int) -> None:
        super().__init__(range_impl, bit_width_impl)
        self.bits = bit_width
        self.overwrites = False

    def forward(self, x: Tensor) -> QuantArgs:
        """Codes of ``x`` (any shape) in [0, 2**bits - 1]."""
        lower, upper = self.range_impl(x)
        codes = quantize_activation(x, lower, upper, self.bits, overwrite=self.overwrites)
        return self._with_metadata(codes)


class WeightCodes(_Codes):
    """Signed codes of 2-bit weights: the integers of a weight format."""

    def __init__(
        self,
        range_impl: LearnedRange,
        bit_width_impl: nn.Module,
        weight_format: WeightFormat = ODD,
    ) -> None:
        super().__init__(range_impl, bit_width_impl)
        self.weight_format = weight_format

    def forward(self, weight: Tensor) -> QuantArgs:
        """Codes of ``weight`` (any shape)."""
        lower, upper = self.range_impl(weight)
        return self._with_metadata(quantize_weight(weight, lower, upper, self.weight_format))
