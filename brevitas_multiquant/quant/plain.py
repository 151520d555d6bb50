"""Modules of a plain network: constants, and stock Brevitas quantizers at scale 1."""

from typing import Any

import torch
from brevitas.inject.enum import RestrictValueType, ScalingImplType
from brevitas.nn import (
    QuantConv1d,
    QuantConv2d,
    QuantConv3d,
    QuantConvTranspose1d,
    QuantConvTranspose2d,
    QuantConvTranspose3d,
    QuantLinear,
)
from brevitas.quant import Int8ActPerTensorFloat, Int8WeightPerTensorFloat, Uint8ActPerTensorFloat
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from brevitas_multiquant.quant.geometry import (
    as_output_channels,
    geometry,
    is_transposed,
    per_channel,
)
from brevitas_multiquant.quant.prepared import prepared


class IntWeightConst(Int8WeightPerTensorFloat):
    """Stock Brevitas weights at scale 1, if ``scaling_init`` is the largest magnitude."""

    scaling_impl_type = ScalingImplType.CONST
    restrict_scaling_type = RestrictValueType.FP


class UintActConst(Uint8ActPerTensorFloat):
    """Stock Brevitas activations at scale 1: unsigned codes."""

    scaling_impl_type = ScalingImplType.CONST
    restrict_scaling_type = RestrictValueType.FP


class IntActConst(Int8ActPerTensorFloat):
    """Stock Brevitas activations at scale 1: signed integers."""

    scaling_impl_type = ScalingImplType.CONST
    restrict_scaling_type = RestrictValueType.FP


class RangeToCodes(nn.Module):
    """``(x - lower) * gain``: moves a range onto the codes, in front of their quantizer."""

    lower: Tensor
    gain: Tensor

    def __init__(self, lower: Tensor, gain: Tensor) -> None:
        super().__init__()
        self.register_buffer("lower", lower.detach().clone())
        self.register_buffer("gain", gain.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        """Values on the scale of codes, not yet rounded, same shape."""
        return x.sub(self.lower).mul(self.gain)


class OutputScale(nn.Module):
    """``x * scale + bias``: the one scale after a multiplication of codes."""

    scale: Tensor
    bias: Tensor | None

    def __init__(self, scale: float | Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.register_buffer("scale", torch.as_tensor(scale))
        self.register_buffer("bias", bias)

    def forward(self, x: Tensor) -> Tensor:
        """Values of the layer, same shape."""
        y = x.mul(self.scale)
        return y if self.bias is None else y.add(self.bias)


class ScaleShift(nn.Module):
    """A batch norm in evaluation: ``x * scale + shift`` per channel."""

    scale: Tensor
    shift: Tensor

    def __init__(self, scale: Tensor, shift: Tensor) -> None:
        super().__init__()
        self.register_buffer("scale", scale.detach().clone())
        self.register_buffer("shift", shift.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        """The norm of ``x`` (N, C, ...)."""
        return x.mul(per_channel(self.scale, x)).add(per_channel(self.shift, x))


class AroundLayer(nn.Sequential):
    """A layer with what stands in front of it or behind, called as the layer is.

    Example:
        >>> up = AroundLayer(nn.ConvTranspose2d(1, 1, 3, stride=2), nn.ReLU())
        >>> up(torch.zeros(1, 1, 4, 4), output_size=(10, 10)).shape
        torch.Size([1, 1, 10, 10])
    """

    def forward(self, x: Tensor, *more: Any, **named: Any) -> Any:  # type: ignore[override]
        """One after the other; what else was passed, such as an ``output_size``, is the layer's."""
        for module in self:
            is_layer = isinstance(module, (_ConvNd, nn.Linear))
            x = module(x, *more, **named) if is_layer else module(x)
        return x


class Constant(nn.Module):
    """A parameter that a half branch reads of its whole one."""

    value: Tensor

    def __init__(self, value: Tensor) -> None:
        super().__init__()
        self.register_buffer("value", value.detach().clone())

    def forward(self) -> Tensor:
        """The value."""
        return self.value


def plain_layer(
    layer: Any,
    integers: Tensor,
    scale: float | Tensor,
    bits: int,
    largest: int,
    narrow_range: bool = True,
) -> nn.Sequential:
    """A stock layer of integer weights, then one scale, and the bias behind it.

    Args:
        layer: a convolution or linear layer, whose shape and bias it has.
        integers: the weights.
        scale: of a product.
        bits: of the integers.
        largest: their largest magnitude.
        narrow_range: whether the most negative integer of that many bits is left out.
    """
    plain_type: Any = next(plain for kind, plain in _PLAIN if isinstance(layer, kind))
    plain = prepared(
        plain_type,
        **geometry(layer),
        bias=False,
        weight_quant=IntWeightConst,
        weight_bit_width=bits,
        weight_narrow_range=narrow_range,
        weight_scaling_init=float(largest),
    )
    if getattr(layer, "is_same_padded_strided", False):
        plain.is_same_padded_strided = True
    weight = nn.Parameter(integers.detach().clone(), requires_grad=False)
    nn.Module.register_parameter(plain, "weight", weight)  # Brevitas's own would inject again
    bias = None if layer.bias is None else as_output_channels(layer, layer.bias).detach().clone()
    both = AroundLayer if is_transposed(layer) else nn.Sequential
    return both(plain, OutputScale(scale, bias)).to(layer.weight.device)


_PLAIN = (
    *((nn.Conv2d, QuantConv2d), (nn.Conv1d, QuantConv1d), (nn.Conv3d, QuantConv3d)),
    *((nn.ConvTranspose2d, QuantConvTranspose2d), (nn.ConvTranspose1d, QuantConvTranspose1d)),
    *((nn.ConvTranspose3d, QuantConvTranspose3d), (nn.Linear, QuantLinear)),
)
