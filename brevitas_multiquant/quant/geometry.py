"""Shapes of layers, and of what is added to their outputs."""

import math
from typing import Any

from torch import Tensor, nn


def geometry(layer: nn.Module) -> dict[str, Any]:
    """The arguments that give a convolution or linear layer its shape, bias and quantizers aside.

    Example:
        >>> geometry(nn.Linear(4, 2))
        {'in_features': 4, 'out_features': 2}
    """
    if isinstance(layer, nn.Linear):
        return {"in_features": layer.in_features, "out_features": layer.out_features}
    names = ["in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation"]
    names += ["groups", "padding_mode", *(["output_padding"] if is_transposed(layer) else [])]
    return {name: getattr(layer, name) for name in names}


def is_transposed(layer: nn.Module | None) -> bool:
    """Whether a layer is a transposed convolution: its weights are (inputs, outputs, ...)."""
    return isinstance(layer, nn.modules.conv._ConvTransposeNd)


def products_per_output(layer: Any) -> int:
    """How many products a layer adds up in one number of its output, at most.

    Of a transposed convolution only the taps that a stride brings to one position.

    Example:
        >>> products_per_output(nn.Conv2d(3, 8, 3))
        27
        >>> products_per_output(nn.ConvTranspose2d(3, 8, 3, stride=2)), 3 * 2 * 2
        (12, 12)
    """
    if not is_transposed(layer):
        return int(layer.weight[0].numel())
    steps = zip(layer.kernel_size, layer.stride, layer.dilation, strict=True)
    taps = [math.ceil(size * math.gcd(s, d) / s) for size, s, d in steps]
    return int(layer.in_channels // layer.groups * math.prod(taps))


def macs_of(layer: Any, read: int, given: int) -> int:
    """Multiply-accumulates of a layer.

    Args:
        layer: a convolution or linear layer.
        read: how many numbers it reads.
        given: how many it gives.
    """
    return int(layer.weight[0].numel()) * (read if is_transposed(layer) else given)


def as_output_channels(layer: nn.Module, vector: Tensor) -> Tensor:
    """A vector over a layer's output channels, ready to add to its output."""
    if isinstance(layer, nn.Linear):
        return vector
    return vector.view(-1, *(1,) * (layer.weight.dim() - 2))  # type: ignore[operator]


def per_channel(vector: Tensor, like: Tensor) -> Tensor:
    """A vector over the channels of ``like`` (N, C, ...), ready to broadcast."""
    return vector.view(1, -1, *(1,) * (like.dim() - 2))
