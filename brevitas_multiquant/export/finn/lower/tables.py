"""Quantizers: everything between two integers as one table of thresholds."""

from typing import Any

import torch
from torch import nn

from brevitas_multiquant.core.power_of_two import integer_range
from brevitas_multiquant.export.finn.integer_graph import MaxPool, Thresholds
from brevitas_multiquant.export.finn.lower.builder import NO_QUANTIZER, Builder, HostQuantizer
from brevitas_multiquant.export.finn.lower.geometry import Window
from brevitas_multiquant.export.finn.lower.values import Value
from brevitas_multiquant.export.finn.thresholds import CodeRange, directions, fp32_table
from brevitas_multiquant.quant.plain import RangeToCodes

LARGEST_BITS = 8
"""Of the codes that a threshold unit gives."""

CURVED = (nn.Sigmoid, nn.Tanh, nn.ELU, nn.SELU, nn.CELU, nn.Softplus, nn.Softsign, nn.LogSigmoid)
"""Rise as functions of real numbers; torch's fp32 may fall by a rounding error between two."""

ROWS = 4096
"""Integers that are evaluated at once."""


def quantize(builder: Builder, where: str, quantizer: Any, value: Value) -> Value:
    """The codes that a quantizer gives: the host's work for the image, a table elsewhere."""
    bits = int(quantizer.act_quant.bit_width())
    code_range = integer_range(bits, bool(quantizer.act_quant.is_signed))
    if bits > LARGEST_BITS:
        advice = f"{bits}-bit codes: thresholds have at most {LARGEST_BITS} bits"
        builder.problem(where, advice, value)
    if value.stream is None and value.known and builder.image is None:
        return _on_the_host(builder, value, code_range)
    if value.stream is None:
        return builder.problem(where, NO_QUANTIZER, value) if value.known else value.hidden()
    value = _rising(builder, where, builder.present(value).then(quantizer))
    if value.stream is None:
        return value.hidden()
    return _table(builder, where, value, code_range, bits)


def _on_the_host(builder: Builder, value: Value, code_range: CodeRange) -> Value:
    (to_codes,) = value.functions
    assert isinstance(to_codes, RangeToCodes)
    stream = builder.stream(value.shape, *code_range)
    builder.image = HostQuantizer(stream, 1 / float(to_codes.gain), code_range)
    return Value(stream, value.shape, vector=value.vector, flat=value.flat)


def _rising(builder: Builder, where: str, value: Value) -> Value:
    """The same with channels turned over in which the code falls as the integer rises.

    A convolution with negated weights of those channels gives the negated integers. All who read
    the convolution read the negated ones from then on.
    """
    source = value.stream
    assert source is not None
    signs = directions(value.evaluate, source.lowest, source.highest, source.shape[0])
    if not bool((signs < 0).any()):
        builder.taken.add(source)
        return value
    if not builder.can_turn_over(source):
        advice = (
            "a negative norm scale that no convolution of its own stands in front of: put a "
            "convolution there, or train with positive norm scales"
        )
        return builder.problem(where, advice, value)
    turned = builder.turn_over(source, signs)
    builder.taken.add(turned)
    return value.turned_over(turned, signs)


def _table(builder: Builder, where: str, value: Value, code_range: CodeRange, bits: int) -> Value:
    """Emit the table, and the max pools that waited for it."""
    source = value.stream
    assert source is not None
    channels = source.shape[0]
    table = fp32_table(value.evaluate, source.lowest, source.highest, channels, code_range)
    output = builder.stream(source.shape, *code_range)
    thresholds = Thresholds(where, (source,), output, table, code_range[0], bits)
    if any(isinstance(function, CURVED) for function in value.functions):
        wrong = _first_difference(thresholds, value)
        if wrong is not None:
            advice = f"an activation that falls by a rounding error at {wrong}: use ReLU"
            return builder.problem(where, advice, value)
    builder.add(thresholds)
    for _, pool in value.pools:
        window = Window.of(pool)
        shape = (channels, *window.positions(output.shape))
        pooled = builder.stream(shape, *code_range)
        moves = (window.kernel, window.stride, window.padding)
        output = builder.add(MaxPool(where, (output,), pooled, *moves))
    return Value(output, value.shape, vector=value.flat, flat=value.flat)


def _first_difference(thresholds: Thresholds, value: Value) -> int | None:
    """The smallest integer for which the table gives another code than torch; None for none."""
    (source,) = thresholds.inputs
    for first in range(source.lowest, source.highest + 1, ROWS):
        last = min(first + ROWS, source.highest + 1)
        integers = torch.arange(first, last, dtype=torch.float32)
        rows = integers.unsqueeze(1).expand(-1, source.shape[0]).contiguous()
        codes = thresholds.run(rows.double()[:, :, None, None])[:, :, 0, 0]
        differs = (codes != value.evaluate(rows)).any(1)
        if bool(differs.any()):
            return int(integers[differs][0])
    return None
