"""Shapes of layers, and of what is added to their outputs."""

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
    names = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation")
    return {name: getattr(layer, name) for name in (*names, "groups", "padding_mode")}


def as_output_channels(layer: nn.Module, vector: Tensor) -> Tensor:
    """A vector over a layer's output channels, ready to add to its output."""
    if isinstance(layer, nn.Linear):
        return vector
    return vector.view(-1, *(1,) * (layer.weight.dim() - 2))  # type: ignore[operator]


def per_channel(vector: Tensor, like: Tensor) -> Tensor:
    """A vector over the channels of ``like`` (N, C, ...), ready to broadcast."""
    return vector.view(1, -1, *(1,) * (like.dim() - 2))
