"""What operations of several tensors become: sums, products, concatenations."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from brevitas_multiquant.export.finn.integer_graph import Addition, Product
from brevitas_multiquant.export.finn.lower.builder import Builder
from brevitas_multiquant.export.finn.lower.registry import apply_rule, register_join, register_rule
from brevitas_multiquant.export.finn.lower.values import Value
from brevitas_multiquant.profiles.finn.modules import PlainProduct, PlainSum
from brevitas_multiquant.quant.plain import OutputScale


@register_join(PlainSum)
def add_up(
    builder: Builder, where: str, total: Any, values: Sequence[Value], names: Sequence[str]
) -> Value:
    """Operands through their quantizers, then binary additions."""
    named = zip(names, total.quantizers, values, strict=len(names) == len(values))
    quantized = [
        apply_rule(builder, f"{where}.{name}", quantizer, [value])
        for name, quantizer, value in named
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
        advice = f"adds {left.shape} and {right.shape}: make both of one shape"
        return builder.problem(where, advice, left)
    lowest = left.stream.lowest + right.stream.lowest
    output = builder.stream(left.shape, lowest, left.stream.highest + right.stream.highest)
    return replace(left, stream=builder.add(Addition(where, (left.stream, right.stream), output)))


@register_join(PlainProduct)
def multiply(
    builder: Builder, where: str, product: Any, values: Sequence[Value], names: Sequence[str]
) -> Value:
    """Both operands through their quantizers; one of them may be a number for each channel."""
    operands = [
        builder.on_a_grid(where, apply_rule(builder, f"{where}.{name}", quantizer, [value]))
        for name, quantizer, value in zip(names, product.quantizers, values, strict=True)
    ]
    left, right = sorted(operands, key=lambda v: -v.shape[1] * v.shape[2])
    if left.stream is None or right.stream is None:
        return replace(left, stream=None, known=left.known and right.known)
    if right.shape not in (left.shape, (left.shape[0], 1, 1)):
        advice = (
            f"multiplies {left.shape} by {right.shape}: hardware takes one shape, or a number for "
            "each channel"
        )
        return builder.problem(where, advice, left)
    ends = [
        a * b
        for a in (left.stream.lowest, left.stream.highest)
        for b in (right.stream.lowest, right.stream.highest)
    ]
    output = builder.stream(left.shape, min(ends), max(ends))
    made = builder.add(Product(where, (left.stream, right.stream), output))
    scale = torch.ones(())
    for factor in (*left.functions, *right.functions):
        scale = factor(scale)
    return replace(left, stream=made, functions=(OutputScale(scale, None),))


def concatenate(builder: Builder, where: str, values: Sequence[Value]) -> Value:
    """Channels of several tensors: put together when the next quantizer has made codes of each."""
    first = values[0]
    sizes = {value.shape[1:] for value in values}
    channels = sum(value.shape[0] for value in values)
    if not all(value.known for value in values):
        return replace(first, shape=(channels, *first.shape[1:])).hidden()
    if len(sizes) > 1 or len({value.flat for value in values}) > 1:
        advice = f"concatenates maps of {sorted(sizes)}: make both of one size"
        return builder.problem(where, advice, first)
    parts: list[Value] = []
    picks: list[int] = []
    for value in values:
        before = sum(part.shape[0] for part in parts)
        own = value.parts or (value,)
        picks += (before + pick for pick in value.picks or range(value.shape[0]))
        parts += own
    shape = (channels, *first.shape[1:])
    whole = replace(first.nothing_yet(), shape=shape, parts=tuple(parts), picks=tuple(picks))
    return replace(whole, bends=any(value.bends for value in values))


class ZeroChannels(nn.Module):
    """Channels of zeros in front and behind."""

    def __init__(self, before: int, behind: int) -> None:
        super().__init__()
        self.before, self.behind = before, behind


@register_rule(ZeroChannels)
def _zero_channels(builder: Builder, where: str, pad: Any, value: Value) -> Value:
    if min(pad.before, pad.behind) < 0:
        return builder.problem(where, "padding below zero, which crops: leave it out", value)
    sizes = value.shape[1:]
    before, behind = (
        [Value(None, (count, *sizes), zeros=True)] if count else []
        for count in (pad.before, pad.behind)
    )
    return concatenate(builder, where, [*before, value, *behind])
