"""What each kind of module becomes: one rule a type, in a registry.

A rule applies to its type and to subclasses without one of their own. Registering another makes
another operation known::

    @register_rule(MyPool)
    def my_pool(builder, where, pool, value): ...
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch.nn.functional as F
from brevitas.nn import QuantConv2d, QuantIdentity, QuantLinear
from torch import Tensor, nn

from brevitas_multiquant.export.finn.integer_graph import (
    Addition,
    ChannelSlice,
    Convolution,
    PositionSum,
)
from brevitas_multiquant.export.finn.lower.builder import NOT_FINN, Builder, sum_range
from brevitas_multiquant.export.finn.lower.geometry import (
    Window,
    dense_weight,
    has_no_layer,
    is_global,
    unsupported_convolution,
    without_taps_on_padding,
)
from brevitas_multiquant.export.finn.lower.tables import quantize
from brevitas_multiquant.export.finn.lower.values import Finish, Value
from brevitas_multiquant.profiles.finn.modules import Divide, PlainSum
from brevitas_multiquant.quant.plain import OutputScale, RangeToCodes, ScaleShift

Rule = Callable[[Builder, str, Any, Value], Value]
"""Network so far, module path, module, what the module reads -> what it gives."""

_RULES: dict[type[nn.Module], Rule] = {}
_NOTHING_BY_NAME = ("DropPath", "DropBlock2d", "StochasticDepth")


class FirstChannels(nn.Module):
    """What a half branch reads of a tensor."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels

    def forward(self, x: Tensor) -> Tensor:
        """The first channels of ``x`` (N, C, ...)."""
        return x.narrow(1, 0, self.channels)


def register_rule(*kinds: type[nn.Module]) -> Callable[[Rule], Rule]:
    """Register what modules of these types become."""

    def register(rule: Rule) -> Rule:
        _RULES.update(dict.fromkeys(kinds, rule))
        return rule

    return register


def apply_rule(builder: Builder, where: str, module: nn.Module, values: Sequence[Value]) -> Value:
    """What a module makes of its inputs."""
    if isinstance(module, PlainSum):
        return add_up(builder, where, module, values, ("left", "right"))
    kinds = type(module).__mro__
    rule = next((_RULES[kind] for kind in kinds if kind in _RULES), None)
    if rule is not None and len(values) == 1:
        return rule(builder, where, module, values[0])
    if kinds[0].__name__ in _NOTHING_BY_NAME:
        return values[0]
    return unknown(builder, where, kinds[0].__name__, values[0])


def unknown(builder: Builder, where: str, name: str, value: Value) -> Value:
    """An operation that hardware has no layer for."""
    advice = f"{name} has no dataflow layer here: use ReLU, batch norm, additions and pooling"
    return builder.problem(where, NOT_FINN if name == "add" else advice, value)


def add_up(
    builder: Builder, where: str, total: PlainSum, values: Sequence[Value], names: Sequence[str]
) -> Value:
    """Operands through their quantizers, then binary additions."""
    quantized = [
        apply_rule(builder, f"{where}.{name}", quantizer, [value])
        for name, quantizer, value in zip(names, total.quantizers, values, strict=True)
    ]
    result = quantized[0]
    for operand in quantized[1:]:
        result = _addition(builder, where, result, operand)
    return result


def _addition(builder: Builder, where: str, left: Value, right: Value) -> Value:
    """Integers of one scale added."""
    if left.stream is None or right.stream is None:
        return replace(left, stream=None, known=left.known and right.known)
    if left.shape != right.shape:
        return builder.problem(where, f"adds {left.shape} and {right.shape}", left)
    lowest = left.stream.lowest + right.stream.lowest
    output = builder.stream(left.shape, lowest, left.stream.highest + right.stream.highest)
    return replace(left, stream=builder.add(Addition(where, (left.stream, right.stream), output)))


register_rule(QuantIdentity)(quantize)


@register_rule(nn.Sequential)
def _in_order(builder: Builder, where: str, modules: Any, value: Value) -> Value:
    for module in modules:
        value = apply_rule(builder, where, module, [value])
    return value


@register_rule(QuantConv2d)
def _convolution(builder: Builder, where: str, conv: Any, value: Value) -> Value:
    window = Window.of(conv)
    shape = (conv.out_channels, *window.positions(value.shape))
    problem = unsupported_convolution(conv)
    if problem:
        return builder.problem(where, problem, replace(value, shape=shape))
    grouped = conv.groups if has_no_layer(conv) else 1
    weight = dense_weight(conv.weight, grouped) if grouped > 1 else conv.weight
    weight, window = without_taps_on_padding(weight, value.shape, window)
    return _weighted(builder, where, conv, value, shape, weight, window, grouped)


@register_rule(QuantLinear)
def _linear(builder: Builder, where: str, linear: Any, value: Value) -> Value:
    """A convolution whose kernel covers the whole image."""
    weight = linear.weight
    shape = (len(weight), 1, 1)
    if not value.known:
        return replace(value, shape=shape)
    channels, height, width = value.shape
    if weight.shape[1] != channels * height * width:
        return builder.problem(where, "reads a tensor of another size", value)
    kernel = weight.view(len(weight), *value.shape)
    return _weighted(builder, where, linear, value, shape, kernel, Window((height, width)))


def _weighted(
    builder: Builder,
    where: str,
    layer: Any,
    value: Value,
    shape: tuple[int, int, int],
    weight: Tensor,
    window: Window,
    grouped: int = 1,
) -> Value:
    """Sums of products of codes; a common power of two of the codes is one of the sums too."""
    value = builder.on_a_grid(where, value)
    if value.stream is None:
        return replace(value, shape=shape)
    output = builder.stream(shape, *sum_range(weight, value.stream))
    product = Convolution(
        where,
        (value.stream,),
        output,
        weight,
        int(layer.weight_quant.bit_width()),
        window.stride,
        window.padding,
        window.dilation,
        1 if grouped > 1 else getattr(layer, "groups", 1),
        bool(layer.weight_quant.is_narrow_range),
        grouped,
    )
    return replace(value, stream=builder.add(product), shape=shape)


@register_rule(nn.Conv2d, nn.Linear)
def _float_layer(builder: Builder, where: str, layer: nn.Module, value: Value) -> Value:
    advice = (
        f"{type(layer).__name__} with float weights: build the network with profile='finn', or "
        "use a plain nn.Conv2d or nn.Linear here"
    )
    return builder.problem(where, advice, value)


@register_rule(FirstChannels)
def _first_channels(builder: Builder, where: str, cut: FirstChannels, value: Value) -> Value:
    value = builder.on_a_grid(where, value)
    shape = (cut.channels, *value.shape[1:])
    if value.stream is None:
        return replace(value, shape=shape)
    output = builder.stream(shape, value.stream.lowest, value.stream.highest)
    return replace(
        value, stream=builder.add(ChannelSlice(where, (value.stream,), output)), shape=shape
    )


@register_rule(nn.MaxPool2d)
def _max_pool(builder: Builder, where: str, pool: Any, value: Value) -> Value:
    """Deferred: the largest code is the code of the largest value."""
    window = Window.of(pool)
    if window.dilation != (1, 1) or (pool.ceil_mode and not window.rounds_alike(value.shape)):
        advice = (
            f"max pool with dilation, or with ceil_mode on a map of {value.shape[1]} x "
            f"{value.shape[2]}: use neither"
        )
        return builder.problem(where, advice, value)
    if value.flat:
        return builder.problem(where, "max pool of a vector", value)
    shape = (value.shape[0], *window.positions(value.shape))
    return replace(value, shape=shape, pools=(*value.pools, (len(value.functions), pool)))


@register_rule(nn.AdaptiveMaxPool2d)
def _global_max_pool(builder: Builder, where: str, pool: Any, value: Value) -> Value:
    if not is_global(pool.output_size):
        advice = "adaptive max pool to more than one position: use nn.MaxPool2d"
        return builder.problem(where, advice, value)
    return _max_pool(builder, where, nn.MaxPool2d(value.shape[1:]), value)


@register_rule(nn.AvgPool2d)
def _average_of_the_map(builder: Builder, where: str, pool: Any, value: Value) -> Value:
    if not Window.of(pool).covers(value.shape) or pool.divisor_override:
        advice = (
            f"average pool of {pool.kernel_size} on a map of {value.shape[1]} x {value.shape[2]}: "
            "one over the whole map has a dataflow layer, or a convolution with stride"
        )
        return builder.problem(where, advice, value)
    return _average(builder, where, nn.AdaptiveAvgPool2d(1), value)


@register_rule(nn.AdaptiveAvgPool2d)
def _average(builder: Builder, where: str, pool: Any, value: Value) -> Value:
    """A sum of integers, and torch's division as a function of it."""
    channels, height, width = value.shape
    if not is_global(pool.output_size):
        advice = "average pool to more than one position: use a global one"
        return builder.problem(where, advice, value)
    if height == width == 1:
        return value
    value = builder.on_a_grid(where, value)
    shape = (channels, 1, 1)
    if value.stream is None:
        return replace(value, shape=shape)
    count = height * width
    output = builder.stream(shape, count * value.stream.lowest, count * value.stream.highest)
    summed = builder.add(PositionSum(where, (value.stream,), output))
    divide = partial(_mean_of_sum, pool, height, width)
    return replace(value, stream=summed, shape=shape).then(divide)


def _mean_of_sum(pool: nn.Module, height: int, width: int, x: Tensor) -> Tensor:
    """What torch's pool makes of a map with this sum, of values that add up exactly."""
    values = x.reshape(*x.shape[:2], 1, 1)
    return pool(F.pad(values, (0, width - 1, 0, height - 1))).reshape(x.shape)


@register_rule(nn.Flatten)
def _flatten(builder: Builder, where: str, flatten: Any, value: Value) -> Value:
    return value.flattened()


@register_rule(nn.Dropout, nn.Dropout2d, nn.Identity)
def _nothing_in_evaluation(builder: Builder, where: str, module: Any, value: Value) -> Value:
    return value


_FINISHES = {nn.Softmax: "softmax", nn.LogSoftmax: "log_softmax"}


@register_rule(*_FINISHES)
def _softmax(builder: Builder, where: str, softmax: Any, value: Value) -> Value:
    """The processor's work, which needs all logits of an image."""
    if softmax.dim not in (1, -1) or not value.flat:
        advice = "softmax of something else than logits (N, classes): leave it out"
        return builder.problem(where, advice, value)
    return value.then(Finish(_FINISHES[type(softmax)]))


@register_rule(nn.SiLU, nn.Hardswish, nn.GELU, nn.Mish)
def _falls_and_rises(builder: Builder, where: str, function: Any, value: Value) -> Value:
    advice = (
        f"{type(function).__name__} falls before it rises, which one table of thresholds cannot "
        "hold: use ReLU, LeakyReLU or another activation that only rises"
    )
    return builder.problem(where, advice, value)


@register_rule(nn.PReLU)
def _prelu(builder: Builder, where: str, prelu: Any, value: Value) -> Value:
    if bool((prelu.weight < 0).any()):
        advice = "PReLU with a negative slope, which falls and rises: clamp its slopes at 0"
        return builder.problem(where, advice, value)
    return _monotone(builder, where, prelu, value)


@register_rule(
    *(OutputScale, ScaleShift, RangeToCodes, Divide),
    *(nn.ReLU, nn.ReLU6, nn.Hardtanh, nn.LeakyReLU, nn.Hardsigmoid, nn.ELU, nn.SELU, nn.CELU),
    *(nn.Sigmoid, nn.Tanh, nn.Softplus, nn.Softsign, nn.LogSigmoid),
)
def _monotone(builder: Builder, where: str, function: Any, value: Value) -> Value:
    """A function that the next table takes in."""
    positions = value.shape[1] * value.shape[2]
    if value.flat and positions > 1 and isinstance(function, ScaleShift):
        return builder.problem(where, "a norm of a flattened map: put it before flatten", value)
    scaled = isinstance(function, (OutputScale, ScaleShift))
    if value.pools and scaled and bool((function.scale < 0).any()):
        advice = (
            "a norm or factor with a negative scale behind a max pool: put the norm in front of "
            "the pool, or train with positive norm scales"
        )
        return builder.problem(where, advice, value)
    falls = isinstance(function, nn.LeakyReLU) and function.negative_slope < 0
    if falls:
        return builder.problem(where, "LeakyReLU with a negative slope: use one from 0 on", value)
    return value.then(function)
