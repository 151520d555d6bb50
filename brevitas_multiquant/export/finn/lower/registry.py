"""Which rule a module has: one a type, in a registry.

A rule applies to its type and to subclasses without one of their own. Registering another makes
another operation known::

    @register_rule(MyPool)
    def my_pool(builder, where, pool, value): ...
"""

from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from brevitas_multiquant.export.finn.lower.builder import NOT_FINN, Builder
from brevitas_multiquant.export.finn.lower.values import Value

Rule = Callable[[Builder, str, Any, Value], Value]
"""Network so far, module path, module, what the module reads -> what it gives."""

JoinRule = Callable[[Builder, str, Any, Sequence[Value], Sequence[str]], Value]
"""The same of several tensors, and what to call them."""

_RULES: dict[type[nn.Module], Rule] = {}
_JOINS: dict[type[nn.Module], JoinRule] = {}
_NOTHING_BY_NAME = ("DropPath", "DropBlock2d", "StochasticDepth")
_OPERANDS = ("left", "right")
_INSTEAD = {
    "LayerNorm": "nn.BatchNorm2d",
    "LayerNorm2d": "nn.BatchNorm2d",
    "GroupNorm": "nn.BatchNorm2d",
    "InstanceNorm2d": "nn.BatchNorm2d",
    "ConvTranspose1d": "nn.Upsample(scale_factor=2) and a convolution",
    "ConvTranspose2d": "nn.Upsample(scale_factor=2) and a convolution",
    "pixel_shuffle": "nn.Upsample(scale_factor=2) and a convolution",
    "PixelShuffle": "nn.Upsample(scale_factor=2) and a convolution",
    "AvgPool3d": "nn.AvgPool2d",
    "LPPool2d": "nn.AvgPool2d or nn.MaxPool2d",
    "mean": "x.mean((2, 3)), or nn.AvgPool2d",
    "sum": "x.mean((2, 3)) of a map, x + y of two",
    "stack": "x + y, or torch.cat of channels",
    "roll": "a convolution",
    "softmax": "a sigmoid as gate",
    "LocalResponseNorm": "nn.BatchNorm2d",
    "InstanceNorm1d": "nn.BatchNorm1d",
    "RMSNorm": "nn.BatchNorm2d",
    "ReflectionPad2d": "nn.ZeroPad2d",
    "ReplicationPad2d": "nn.ZeroPad2d",
    "CircularPad2d": "nn.ZeroPad2d",
    "pad": "zeros",
    "repeat_interleave": "nn.Upsample(scale_factor=2)",
    "max": "x.amax((2, 3)), or nn.MaxPool2d",
    "amax": "x.amax((2, 3)), or nn.MaxPool2d",
    "argmax": "the logits, of which the processor takes the largest",
}
"""Names of operations without a layer -> what to use in their place."""
_USUAL = "ReLU, batch norm, additions, concatenations and pooling"


def register_rule(*kinds: type[nn.Module]) -> Callable[[Rule], Rule]:
    """Register what modules of these types become."""

    def register(rule: Rule) -> Rule:
        _RULES.update(dict.fromkeys(kinds, rule))
        return rule

    return register


def register_join(*kinds: type[nn.Module]) -> Callable[[JoinRule], JoinRule]:
    """Register what modules of these types make of several tensors."""

    def register(rule: JoinRule) -> JoinRule:
        _JOINS.update(dict.fromkeys(kinds, rule))
        return rule

    return register


def apply_rule(builder: Builder, where: str, module: nn.Module, values: Sequence[Value]) -> Value:
    """What a module makes of its inputs."""
    kinds = type(module).__mro__
    join = next((_JOINS[kind] for kind in kinds if kind in _JOINS), None)
    if join is not None:
        return join(builder, where, module, values, _OPERANDS)
    rule = next((_RULES[kind] for kind in kinds if kind in _RULES), None)
    if rule is not None and len(values) == 1:
        return rule(builder, where, module, values[0])
    if kinds[0].__name__ in _NOTHING_BY_NAME:
        return values[0]
    return unknown(builder, where, kinds[0].__name__, values[0])


def unknown(builder: Builder, where: str, name: str, value: Value) -> Value:
    """An operation that hardware has no layer for, under its author's name."""
    name = name.removeprefix("Quant")
    advice = f"{name} has no dataflow layer here: use {_INSTEAD.get(name, _USUAL)}"
    return builder.problem(where, NOT_FINN if name == "add" else advice, value)
