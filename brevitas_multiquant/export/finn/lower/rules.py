"""What each kind of layer and activation becomes."""

from dataclasses import replace
from typing import Any

from brevitas.nn import QuantConv1d, QuantConv2d, QuantIdentity, QuantLinear
from torch import Tensor, nn

from brevitas_multiquant.export.finn.integer_graph import ChannelSlice, Convolution
from brevitas_multiquant.export.finn.lower.builder import Builder, sum_range
from brevitas_multiquant.export.finn.lower.geometry import (
    Shape,
    Window,
    dense_weight,
    has_no_layer,
    same_padding,
    unsupported_convolution,
    without_taps_on_padding,
)
from brevitas_multiquant.export.finn.lower.moves import ZeroPadding
from brevitas_multiquant.export.finn.lower.pools import LINE_OF_MAP
from brevitas_multiquant.export.finn.lower.registry import Rule, apply_rule, register_rule
from brevitas_multiquant.export.finn.lower.tables import NO_SOFTMAX, quantize
from brevitas_multiquant.export.finn.lower.values import Finish, Function, Value
from brevitas_multiquant.profiles.finn.modules import Divide
from brevitas_multiquant.quant.plain import OutputScale, RangeToCodes, ScaleShift

__all__ = ["FirstChannels", "Rule", "apply_rule", "register_rule"]


class FirstChannels(nn.Module):
    """What a half branch reads of a tensor."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels

    def forward(self, x: Tensor) -> Tensor:
        """The first channels of ``x`` (N, C, ...)."""
        return x.narrow(1, 0, self.channels)


register_rule(QuantIdentity)(quantize)


@register_rule(nn.Sequential)
def _in_order(builder: Builder, where: str, modules: Any, value: Value) -> Value:
    for module in modules:
        value = apply_rule(builder, where, module, [value])
    return value


@register_rule(QuantConv1d, QuantConv2d)
def _convolution(builder: Builder, where: str, conv: Any, value: Value) -> Value:
    """Along lines, one of height 1."""
    window, weight = Window.of(conv), conv.weight
    if isinstance(conv, QuantConv1d):
        weight = weight.unsqueeze(2)
    problem = unsupported_convolution(conv)
    if isinstance(conv, QuantConv1d) and value.shape[1] > 1 and not window.samples:
        problem = LINE_OF_MAP
    if problem is None and _pads_one_side_more(conv, window):
        value, window = _padded_alike(builder, where, window, value)
    shape = (conv.out_channels, *window.positions(value.shape))
    if problem:
        return builder.problem(where, problem, replace(value, shape=shape))
    grouped = conv.groups if has_no_layer(conv) else 1
    weight = dense_weight(weight, grouped) if grouped > 1 else weight
    weight, window = without_taps_on_padding(weight, value.shape, window)
    return _weighted(builder, where, conv, value, shape, weight, window, grouped)


def _pads_one_side_more(conv: Any, window: Window) -> bool:
    """Whether padding may differ before and behind: for a stride, and of even kernels."""
    uneven = conv.padding == "same" and not window.has_middle
    return uneven or getattr(conv, "is_same_padded_strided", False)


def _padded_alike(
    builder: Builder, where: str, window: Window, value: Value
) -> tuple[Value, Window]:
    """Padding that depends on the image's size, which is known here."""
    before, after = same_padding(window, value.shape)
    if before == after:
        return value, replace(window, padding=before)
    window = replace(window, padding=(0, 0))
    value = builder.on_a_grid(where, value)
    move = ZeroPadding(before, after)
    if value.stream is None:
        return replace(value, shape=move.shape(value.shape)), window
    padded = builder.moved(where, value.stream, move)
    return replace(value, stream=padded, shape=padded.shape), window


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
    shape: Shape,
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
    kind = type(layer).__name__
    advice = (
        f"{kind} with float weights: use a plain nn.Conv2d or nn.Linear, not one that computes its "
        "weights or has a forward of its own, in a network built with profile='finn'"
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


@register_rule(nn.Flatten)
def _flatten(builder: Builder, where: str, flatten: Any, value: Value) -> Value:
    return value.in_rank(2)


@register_rule(
    *(nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.AlphaDropout, nn.FeatureAlphaDropout)
)
def _nothing_in_evaluation(builder: Builder, where: str, module: Any, value: Value) -> Value:
    return value


_FINISHES = {nn.Softmax: "softmax", nn.LogSoftmax: "log_softmax"}


@register_rule(*_FINISHES)
def _softmax(builder: Builder, where: str, softmax: Any, value: Value) -> Value:
    """The processor's work, which needs all logits of an image, or of a position."""
    dims = (None, 1, -1) if value.flat else (1, -3)
    if softmax.dim not in dims or value.rank == 3:
        return builder.problem(where, NO_SOFTMAX, value)
    return value.then(Finish(_FINISHES[type(softmax)]))


@register_rule(nn.SiLU, nn.Hardswish, nn.GELU, nn.Mish)
def _falls_and_rises(builder: Builder, where: str, function: Any, value: Value) -> Value:
    return after(builder, where, function, value, bends=True)


@register_rule(nn.PReLU)
def _prelu(builder: Builder, where: str, prelu: Any, value: Value) -> Value:
    return after(builder, where, prelu, value, bends=bool((prelu.weight < 0).any()))


@register_rule(nn.Threshold)
def _threshold(builder: Builder, where: str, function: Any, value: Value) -> Value:
    return after(builder, where, function, value, bends=function.value > function.threshold)


@register_rule(nn.LeakyReLU)
def _leaky_relu(builder: Builder, where: str, function: Any, value: Value) -> Value:
    return after(builder, where, function, value, bends=function.negative_slope < 0)


@register_rule(
    *(RangeToCodes, Divide, nn.ReLU, nn.ReLU6, nn.Hardtanh, nn.Hardsigmoid),
    *(nn.ELU, nn.SELU, nn.CELU, nn.Sigmoid, nn.Tanh, nn.Softplus, nn.Softsign, nn.LogSigmoid),
    *(nn.Hardshrink, nn.Softshrink, nn.Tanhshrink, nn.RReLU),
)
def _rises(builder: Builder, where: str, function: Any, value: Value) -> Value:
    return value.then(function)


@register_rule(OutputScale, ScaleShift)
def _scaled(builder: Builder, where: str, function: Any, value: Value) -> Value:
    positions = value.shape[1] * value.shape[2]
    if value.flat and positions > 1 and isinstance(function, ScaleShift):
        return builder.problem(where, "a norm of a flattened map: put it before flatten", value)
    return after(builder, where, function, value, falls=bool((function.scale < 0).any()))


def after(
    builder: Builder,
    where: str,
    function: Function,
    value: Value,
    *,
    falls: bool = False,
    bends: bool = False,
) -> Value:
    """A value after a function of its numbers, which the next tables take in.

    Args:
        builder: the network so far.
        where: module path.
        function: of every number by itself, the same at all positions.
        value: what it reads.
        falls: whether it may fall in some channels.
        bends: whether it may fall and rise.
    """
    if (falls or bends) and value.waits_in_order:
        value = builder.settled(where, value)
    return value.then(function, bends)
