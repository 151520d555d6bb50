"""Kinds of modules, told by type, or by what their author calls them."""

from torch import nn

from brevitas_multiquant.quant.layers import WEIGHTED

NORMS = (
    nn.modules.batchnorm._BatchNorm,
    nn.modules.instancenorm._InstanceNorm,
    nn.LayerNorm,
    nn.GroupNorm,
    nn.RMSNorm,
)

LAYERS = (*WEIGHTED, nn.modules.conv._ConvNd, nn.Bilinear)
"""Every kind of convolution and linear layer, also those that cannot be quantized."""


def has_parameters(module: nn.Module | None) -> bool:
    """Whether there is a module, and it has parameters."""
    return module is not None and next(module.parameters(), None) is not None


def is_norm(module: nn.Module | None) -> bool:
    """Whether a module is a norm of any kind, by type or by what its author calls it."""
    if isinstance(module, NORMS):
        return True
    named_so = module is not None and "norm" in type(module).__name__.lower()
    return named_so and has_parameters(module) and not contains_layer(module)


def is_constant_norm(module: nn.Module | None) -> bool:
    """Whether a module is called a norm and holds constants alone (``FrozenBatchNorm2d``)."""
    named_so = module is not None and "norm" in type(module).__name__.lower()
    if not named_so or isinstance(module, NORMS) or has_parameters(module):
        return False
    return next(module.buffers(), None) is not None  # type: ignore[union-attr]


def contains_layer(module: nn.Module | None) -> bool:
    """Whether there is a module, and a layer that can be quantized is in it."""
    return module is not None and any(isinstance(m, WEIGHTED) for m in module.modules())
