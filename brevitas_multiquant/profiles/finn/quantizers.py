"""What hardware needs beside 2-bit layers: fixed-point activations, and 8-bit stem and classifier.

Layers hold values, not codes: with power-of-two scales both are exact in fp32.
"""

import copy
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from brevitas.inject.enum import BitWidthImplType, FloatToIntImplType, QuantType
from brevitas.nn import QuantConv1d, QuantConv2d, QuantIdentity, QuantLinear
from brevitas.quant import Int8WeightPerTensorFixedPoint
from brevitas.quant.solver.act import ActQuantSolver
from torch import Tensor, nn

from brevitas_multiquant.core.panel import Panel
from brevitas_multiquant.core.power_of_two import (
    EDGE_BITS,
    integer_range,
    power_of_two_scale,
    quantize_fixed_point,
)
from brevitas_multiquant.quant.entries import FLOAT_BYTES, Entry, float_entries
from brevitas_multiquant.quant.exact import contract_exactly, refuse_mixed_types
from brevitas_multiquant.quant.geometry import as_output_channels, geometry
from brevitas_multiquant.quant.layers import is_plain
from brevitas_multiquant.quant.member import (
    INPUT,
    WEIGHT,
    Member,
    Site,
    has_no_sites,
    stays_as_it_is,
    stores_nothing,
)
from brevitas_multiquant.quant.plain import plain_layer
from brevitas_multiquant.quant.prepared import prepared
from brevitas_multiquant.quant.proxies import LearnedRangeActQuantProxy, activation_tensor_quant
from brevitas_multiquant.quant.ranges import ActivationRange, LearnedRange
from brevitas_multiquant.quant.tensor_quant import QuantArgs


def reach_of(learned: LearnedRange) -> Tensor:
    """The larger magnitude of l and u: a fixed-point range is symmetric, or starts at 0."""
    return torch.maximum(-learned.lower, learned.upper)


class FixedPointValues(Member):
    """Brevitas ``tensor_quant``: trainable range in, integers times a power of two out."""

    stored = stores_nothing
    frozen = stays_as_it_is
    sites = has_no_sites

    def __init__(
        self, range_impl: LearnedRange, bit_width_impl: nn.Module, bit_width: int, signed: bool
    ) -> None:
        super().__init__()
        self.range_impl = range_impl
        self.bit_width_impl = bit_width_impl
        self.bits = bit_width
        self.signed = signed

    @property
    def scale(self) -> Tensor:
        """The power of two that the integers are multiples of."""
        return power_of_two_scale(reach_of(self.range_impl), self.bits, self.signed)

    def forward(self, x: Tensor) -> QuantArgs:
        """Values of ``x`` (any shape) on the fixed-point grid."""
        self.range_impl(x)
        values = quantize_fixed_point(x, reach_of(self.range_impl), self.bits, self.signed)
        return values, self.scale, torch.zeros_like(self.scale), self.bit_width_impl()


class FixedPointActPerTensorLearnedRange(ActQuantSolver):
    """Activations of any bit-width at a power-of-two scale that follows a trainable range.

    Example:
        >>> quant = QuantIdentity(act_quant=FixedPointActPerTensorLearnedRange, bit_width=4)
        >>> values = quant(torch.randn(100))
    """

    quant_type = QuantType.INT
    float_to_int_impl_type = FloatToIntImplType.FLOOR
    bit_width_impl_type = BitWidthImplType.CONST
    proxy_class = LearnedRangeActQuantProxy
    tensor_quant = FixedPointValues
    range_impl = ActivationRange
    bit_width = EDGE_BITS
    signed = True
    narrow_range = False


def fixed_point_quantizer(bits: int, signed: bool) -> QuantIdentity:
    """A quantizer with a range of its own that returns plain tensors."""
    quantizer = prepared(
        QuantIdentity, act_quant=FixedPointActPerTensorLearnedRange, bit_width=bits, signed=signed
    )
    quantizer.act_quant.skip_create_quant_tensor = True
    return quantizer  # type: ignore[no-any-return]


def fixed_point_of(quantizer: Any) -> FixedPointValues:
    """The ``tensor_quant`` of a `fixed_point_quantizer`."""
    return activation_tensor_quant(quantizer)


class FixedPointLayer(Member):
    """Mixed into a Brevitas layer: 8-bit weights at a power-of-two scale, a float bias after."""

    active: Panel
    weight: Tensor
    bias: Tensor | None
    weight_quant: Any

    def inner_forward_impl(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The layer's own operation; float while quantizers are off."""
        contract = super().inner_forward_impl  # type: ignore[misc]
        if not self.active.quantized:
            return contract(x, self.weight, bias)
        if self.training:
            refuse_mixed_types(x, weight)
            y = contract(x, weight, None)
        else:
            y = contract_exactly(contract, x, weight).to(weight.dtype)
        return y if bias is None else y.add(as_output_channels(self, bias))

    def stored(self, name: str) -> Iterable[Entry]:
        """Floats; in hardware a weight is a byte, and their scale one float more."""
        deployed = self.weight.numel() * EDGE_BITS // 8 + FLOAT_BYTES
        for entry in float_entries(self, name):
            is_weight = entry.name == f"{name}.weight"
            yield replace(entry, deployed=deployed) if is_weight else entry

    def frozen(self, bits: int, name: str) -> nn.Module:
        """A stock layer of integer weights, one scale and the bias behind it."""
        integers, scale = self.integer_weights()
        _, largest = integer_range(EDGE_BITS, signed=True)
        return plain_layer(self, integers, scale.clone(), EDGE_BITS, largest)

    def sites(self) -> Mapping[str, Site]:
        """Its integers, and those that it reads."""
        return {WEIGHT: Site(EDGE_BITS, self.weight.numel()), INPUT: Site(EDGE_BITS)}

    def integer_weights(self) -> tuple[Tensor, Tensor]:
        """Integers like the weights, and the power of two that they are multiplied with."""
        values, scale, _, _ = self.weight_quant.tensor_quant(self.weight)
        return (values / scale).detach(), scale.detach()


class FixedPointConv2d(FixedPointLayer, QuantConv2d):
    """`FixedPointLayer` over ``brevitas.nn.QuantConv2d``."""


class FixedPointConv1d(FixedPointLayer, QuantConv1d):
    """`FixedPointLayer` over ``brevitas.nn.QuantConv1d``."""


class FixedPointLinear(FixedPointLayer, QuantLinear):
    """`FixedPointLayer` over ``brevitas.nn.QuantLinear``."""


def fixed_point_layer(layer: nn.Module, active: Panel) -> FixedPointLayer | None:
    """A plain convolution or linear layer with 8-bit weights; None for any other kind."""
    quantized_type: Any
    same_padded = is_plain(layer, "timm.layers.Conv2dSame")
    if same_padded or is_plain(layer, nn.Conv2d):
        quantized_type = FixedPointConv2d
    elif is_plain(layer, nn.Conv1d):
        quantized_type = FixedPointConv1d
    elif is_plain(layer, nn.Linear):
        quantized_type = FixedPointLinear
    else:
        return None
    with torch.random.fork_rng(devices=[]):
        quantized = quantized_type(
            **geometry(layer),
            bias=layer.bias is not None,
            weight_quant=Int8WeightPerTensorFixedPoint,
        )
    for name, parameter in layer.named_parameters(recurse=False):
        quantized.register_parameter(name, copy.deepcopy(parameter))
    quantized.active = active
    if same_padded:
        quantized.is_same_padded_strided = True
    quantized.weight_quant.skip_create_quant_tensor = True
    return quantized.train(layer.training).to(quantized.weight.device)
