"""Quantizers: everything between two integers as tables of thresholds.

One table where the codes rise with the integer, two where they fall: any staircase is what one
that rises counts less what another one counts.
"""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from brevitas_multiquant.core.power_of_two import integer_range
from brevitas_multiquant.export.finn.integer_graph import Stream, Subtraction, Thresholds
from brevitas_multiquant.export.finn.lower.builder import (
    NEGATIVE,
    NO_QUANTIZER,
    Builder,
    HostQuantizer,
)
from brevitas_multiquant.export.finn.lower.moves import LowestPadding, Move, ZeroPadding
from brevitas_multiquant.export.finn.lower.pointwise import Pointwise
from brevitas_multiquant.export.finn.lower.values import Finish, OnSomeChannels, Value
from brevitas_multiquant.export.finn.thresholds import (
    ROWS,
    CodeRange,
    directions,
    fp32_table,
    steps_up_and_down,
)
from brevitas_multiquant.quant.plain import RangeToCodes

LARGEST_BITS = 8
"""Of the codes that a threshold unit gives."""

MOST_LOOKS = 2**31
"""Integers times channels that a staircase is looked at in, at most: minutes."""

CURVED = (
    *(nn.Sigmoid, nn.Tanh, nn.ELU, nn.SELU, nn.CELU, nn.Softplus, nn.Softsign, nn.LogSigmoid),
    *(nn.Tanhshrink, Pointwise),
)
"""Rise as functions of real numbers; torch's fp32 may fall by a rounding error between two."""

NO_SOFTMAX = "softmax of something else than logits (N, classes, ...): use a sigmoid as gate"


def quantize(builder: Builder, where: str, quantizer: Any, value: Value) -> Value:
    """The codes that a quantizer gives: the host's work for the image, a table elsewhere."""
    bits = int(quantizer.act_quant.bit_width())  # Brevitas runs the quantizer for it
    code_range = integer_range(bits, bool(quantizer.act_quant.is_signed))
    if bits > LARGEST_BITS:
        advice = f"{bits}-bit codes: thresholds have at most {LARGEST_BITS} bits"
        builder.problem(where, advice, value)
    return _quantized(builder, where, quantizer, value, code_range, bits)


def _quantized(
    builder: Builder, where: str, quantizer: Any, value: Value, code_range: CodeRange, bits: int
) -> Value:
    if any(isinstance(_plain(function), Finish) for function in value.functions):
        return builder.problem(where, NO_SOFTMAX, value)
    if value.parts:
        return _of_parts(builder, where, quantizer, value, code_range, bits)
    if value.stream is None and value.known and builder.image is None:
        return _on_the_host(builder, where, value, code_range)
    if value.stream is None:
        return builder.problem(where, NO_QUANTIZER, value) if value.known else value.hidden()
    value = _rising(builder, builder.present(value).then(quantizer))
    return _codes(builder, where, value, code_range, bits)


def _on_the_host(builder: Builder, where: str, value: Value, code_range: CodeRange) -> Value:
    (to_codes, *others) = value.functions
    if others or value.moves or not isinstance(to_codes, RangeToCodes):
        advice = "changes the image before the first layer: leave that to those who load images"
        return builder.problem(where, advice, value)
    stream = builder.stream(value.shape, *code_range)
    builder.image = HostQuantizer(stream, 1 / float(to_codes.gain), code_range)
    return Value(stream, value.shape, held=value.held, rank=value.rank)


def _of_parts(
    builder: Builder, where: str, quantizer: Any, value: Value, code_range: CodeRange, bits: int
) -> Value:
    """The codes of each part, put together as the parts are."""
    streams: list[Stream] = []
    channel_of: list[int] = []
    for part in value.parts:
        if part.zeros:
            codes = part.then(quantizer).evaluate(torch.zeros(1, part.shape[0]))
            if bool(codes.any()):
                return builder.problem(where, _not_zero(int(codes.abs().max())), value)
            channel_of += [-1] * part.shape[0]
            continue
        quantized = _quantized(builder, where, quantizer, part, code_range, bits)
        if quantized.stream is None:
            return value.hidden()
        first = sum(stream.shape[0] for stream in streams)
        channel_of += range(first, first + part.shape[0])
        streams.append(quantized.stream)
    picks = [channel_of[pick] for pick in value.picks]
    joined = builder.joined(where, streams, picks, value.shape)
    return replace(value.nothing_yet(), stream=joined, bends=False)


def _not_zero(code: int) -> str:
    return (
        f"zeros that are put around or beside a tensor become the code {code}, not 0: put them "
        "behind an activation that starts at 0, or use a convolution with padding in their place"
    )


def _rising(builder: Builder, value: Value) -> Value:
    """The same with channels turned over in which the code falls as the integer rises.

    A convolution with negated weights of those channels gives the negated integers. All who read
    the convolution read the negated ones from then on. Where none can be turned over, nothing is.
    """
    source = value.stream
    assert source is not None
    signs = directions(value.evaluate, source.lowest, source.highest, source.shape[0])
    if bool((signs < 0).any()) and builder.can_turn_over(source):
        source = builder.turn_over(source, signs)
        value = value.turned_over(source, signs)
    builder.taken.add(source)
    return value


def _codes(builder: Builder, where: str, value: Value, code_range: CodeRange, bits: int) -> Value:
    """Emit the tables, and the moves that waited for them."""
    source = value.stream
    assert source is not None
    signs = directions(value.evaluate, source.lowest, source.highest, source.shape[0])
    if value.bends or bool((signs < 0).any()):
        looks = (source.highest - source.lowest) * source.shape[0]
        if looks > MOST_LOOKS:
            advice = (
                f"an activation that falls and rises, or a negative norm scale, on {looks:.1e} "
                "sums to look at: use ReLU or positive norm scales, fewer bits or input channels"
            )
            return builder.problem(where, advice, value)
        output = _two_tables(builder, where, value, code_range)
    else:
        output = _one_table(builder, where, value, code_range, bits)
    negative = _may_be_negative(value, output)
    for before, move in value.moves:
        problem = _cannot_move(value, before, move, negative)
        if problem is not None:
            return builder.problem(where, problem, value)
        output = builder.moved(where, output, move)
    return Value(output, value.shape, held=value.rank, rank=value.rank)


def _may_be_negative(value: Value, codes: Stream) -> bool:
    """Whether a code can be below 0, as none can behind ReLU."""
    if value.bends or codes.lowest >= 0:
        return codes.lowest < 0
    source = value.stream
    assert source is not None
    ends = torch.tensor([[source.lowest], [source.highest]]).expand(2, source.shape[0])
    return bool((value.evaluate(ends.float().contiguous()) < 0).any())


def _cannot_move(value: Value, before: int, move: Move, negative: bool) -> str | None:
    """Why a move cannot be made of codes; None if it can."""
    if move.needs_no_negative and negative:
        return NEGATIVE
    if isinstance(move, ZeroPadding) and not isinstance(move, LowestPadding):
        zeros = torch.zeros(1, value.shape[0])
        codes = value.run(value.functions[before:], zeros)
        if bool(codes.any()):
            return _not_zero(int(codes.abs().max()))
    return None


def _one_table(
    builder: Builder, where: str, value: Value, code_range: CodeRange, bits: int
) -> Stream:
    source = value.stream
    assert source is not None
    channels = source.shape[0]
    table = fp32_table(value.evaluate, source.lowest, source.highest, channels, code_range)
    output = builder.stream(source.shape, *code_range)
    thresholds = Thresholds(where, (source,), output, table, code_range[0], bits)
    curved = any(isinstance(_plain(function), CURVED) for function in value.functions)
    if curved and _differs(thresholds, value):
        return _two_tables(builder, where, value, code_range)
    return builder.add(thresholds)


def _two_tables(builder: Builder, where: str, value: Value, code_range: CodeRange) -> Stream:
    """What rises, and what falls, of a staircase that does both."""
    source = value.stream
    assert source is not None
    shape, channels, lowest = source.shape, source.shape[0], code_range[0]
    up, down = steps_up_and_down(value.evaluate, source.lowest, source.highest, channels, lowest)
    counts = []
    for table, first in ((up, lowest), (down, 0)):
        output = builder.stream(shape, first, first + table.shape[1])
        counts.append(builder.add(_thresholds(where, source, output, table, first)))
    output = builder.stream(shape, *code_range)
    return builder.add(Subtraction(where, tuple(counts), output))


def _thresholds(
    where: str, source: Stream, output: Stream, table: Tensor, first: int
) -> Thresholds:
    bits = max(abs(output.highest), abs(first) - 1).bit_length() + (first < 0)
    return Thresholds(where, (source,), output, table, first, max(bits, 1))


def _plain(function: Any) -> Any:
    return _plain(function.function) if isinstance(function, OnSomeChannels) else function


def _differs(thresholds: Thresholds, value: Value) -> bool:
    """Whether there is an integer for which the table gives another code than torch."""
    (source,) = thresholds.inputs
    for first in range(source.lowest, source.highest + 1, ROWS):
        last = min(first + ROWS, source.highest + 1)
        integers = torch.arange(first, last, dtype=torch.float32)
        rows = integers.unsqueeze(1).expand(-1, source.shape[0]).contiguous()
        codes = thresholds.run(rows.double()[:, :, None, None])[:, :, 0, 0]
        if bool((codes != value.evaluate(rows)).any()):
            return True
    return False
