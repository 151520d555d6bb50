"""Convolutions of timm that standardise their weights, by name: timm is optional."""

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from brevitas_multiquant.core.panel import Panel
from brevitas_multiquant.quant.layers import (
    CodeConv2d,
    CodeLayer,
    Weights,
    empty_layer,
    finished,
    register_layer,
    rule_of,
)
from brevitas_multiquant.quant.member import Stock, answers_for


def _standardised_weight(layer: Any, eps: float, scale: float | None) -> Tensor:
    """Weight standardisation as timm computes it, with the layer's gain where it has one."""
    gain = None if scale is None else (layer.gain * scale).view(-1)
    flat = layer.weight.reshape(1, layer.out_channels, -1)
    standardised = F.batch_norm(flat, None, None, weight=gain, training=True, momentum=0.0, eps=eps)
    return standardised.reshape_as(layer.weight)


@register_layer("timm.layers.StdConv2d")
@register_layer("timm.layers.StdConv2dSame")
@register_layer("timm.layers.ScaledStdConv2d")
@register_layer("timm.layers.ScaledStdConv2dSame")
def _standardised_conv2d(conv: Any, active: Panel, weight_format: Weights) -> CodeLayer:
    quantized = empty_layer(CodeConv2d, conv, weight_format)
    quantized.is_same_padded_strided = getattr(conv, "same_pad", False)
    return finished(quantized, conv, active, _weight_function(conv))


def _weight_function(conv: Any) -> Callable[[nn.Module], Tensor]:
    return partial(_standardised_weight, eps=conv.eps, scale=getattr(conv, "scale", None))


@answers_for(lambda layer: rule_of(layer) is _standardised_conv2d)
class _StandardisedConv2d(Stock):
    """A float convolution that standardises its weight."""

    def frozen(self, bits: int, name: str) -> nn.Module:
        """One that holds the result."""
        layer: Any = self.module
        weight = _weight_function(layer)(layer).detach()
        plain: Any = copy.deepcopy(layer, {id(layer.weight): nn.Parameter(weight)})
        plain.__class__ = _same_padded_conv2d() if getattr(layer, "same_pad", False) else nn.Conv2d
        return plain  # type: ignore[no-any-return]


def _same_padded_conv2d() -> type[nn.Conv2d]:
    """Only asked where a layer of timm is at hand: timm is optional."""
    from timm.layers import Conv2dSame

    return Conv2dSame
