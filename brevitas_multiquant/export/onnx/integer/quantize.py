"""Quantizers: what floats between two integers become."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from brevitas_multiquant.export.onnx.integer.graph import Graph, attributes
from brevitas_multiquant.export.onnx.integer.kernels import (
    clip_bytes,
    dequantize,
    integers_of,
    layer,
    to_bytes,
)
from brevitas_multiquant.export.onnx.integer.values import (
    Array,
    Average,
    Floats,
    Integers,
    Product,
    Sum,
    Value,
    uniform,
)

Ends = tuple[int, int]
"""Smallest and largest integer."""

TIE = 2.0**-12
"""Of a step: a quantizer that rounds ties upwards gets values so much higher."""


def quantize(graph: Graph, value: Value, ends: Ends, node: Any) -> Integers | None:
    """The integers of a value whose unit is their step.

    Args:
        graph: gets the nodes.
        value: what is quantized; a ``floored`` one rounds ties upwards, any other to even.
        ends: smallest and largest integer of the quantizer.
        node: the old quantizer.

    Returns:
        None where no kernel does it, or channels end at different integers.
    """
    limits = _ends(value, ends)
    if limits is None:
        return None
    made = _KINDS[type(value.source)](graph, value, limits, node)
    if made is None:
        return None
    for move in value.moves:
        made = moved(graph, made, move)
    return made


def _ends(value: Value, ends: Ends) -> tuple[int, int] | None:
    """Where the integers end: bounds of the value are bounds of what it is rounded to."""
    rounded = np.floor if value.floored else np.rint
    shift = 0.5 if value.floored else 0.0
    low, high = (
        uniform(rounded(np.clip(np.asarray(bound) + shift, *ends)))
        for bound in (value.lowest, value.highest)
    )
    return None if low is None or high is None else (int(low), int(high))


def _of_product(graph: Graph, value: Value, ends: Ends, node: Any) -> Integers | None:
    product: Any = value.source
    floats = layer(graph, product, *_channels(value, len(product.weight)), ends)
    shape = graph.shapes[product.node.output[0]]
    return to_bytes(graph, floats, 1.0, ends, shape, product.node)


def _channels(value: Value, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Scale and shift of each channel."""
    return _of_each(value.scale, count), _of_each(value.shift, count)


def _of_each(numbers: Array, count: int) -> np.ndarray:
    return np.broadcast_to(np.asarray(numbers, dtype=np.float64).reshape(-1), (count,))


def _of_integers(graph: Graph, value: Value, ends: Ends, node: Any) -> Integers | None:
    """Other steps for the same integers; those of the same steps are only clipped."""
    integers = integers_of(graph, value.source)
    if integers is None:
        return _of_wide_sum(graph, value, ends, node)
    scale, shift = uniform(value.scale), uniform(value.shift)
    if scale is None or shift is None or scale <= 0:
        return _by_channel(graph, value, integers, ends, node)
    if scale == 1 and shift == np.rint(shift):
        return _relabelled(graph, integers, int(shift), ends, node)
    operands = [
        dequantize(graph, integers, scale, node),
        _constant(graph, shift + TIE * value.floored, node),
    ]
    floats = graph.add("Add", operands, node)
    lowest, highest = (
        int(np.rint(scale * end + shift)) for end in (integers.lowest - 1, integers.highest + 1)
    )
    return to_bytes(graph, floats, 1.0, ends, integers.shape, node, (lowest, highest))


def _constant(graph: Graph, number: float, node: Any) -> str:
    """A number as bytes and a scale, for the kernel that adds."""
    byte, zero = (1, 0) if number >= 0 else (0, 1)
    one = Integers(graph.initializer(byte, np.uint8, "byte"), zero, 0, 1, ())
    return dequantize(graph, one, max(abs(number), _SMALLEST), node)


_SMALLEST = 1e-30
"""A scale has to be positive."""


def _of_wide_sum(graph: Graph, value: Value, ends: Ends, node: Any) -> Integers | None:
    """A sum that bytes do not hold stays a sum of floats, which is exact."""
    total: Any = value.source
    floats = Floats(total.node.output[0])
    lowest = np.maximum(value.lowest, total.lowest * value.scale + value.shift)
    scale, shift = uniform(value.scale), uniform(value.shift)
    if scale is None or shift is None or scale <= 0:
        return None
    lowest = max(ends[0], min(ends[1], int(np.rint(scale * total.lowest + shift))))
    shift += TIE * value.floored
    same = replace(value, source=floats, scale=scale / total.step, shift=shift)
    return _of_floats(graph, same, (lowest, ends[1]), node)


def _relabelled(
    graph: Graph, integers: Integers, shift: int, ends: Ends, node: Any
) -> Integers | None:
    """The same bytes, which stand for integers ``shift`` higher, between two ends."""
    zero = integers.zero_point - shift
    lowest, highest = max(ends[0], integers.lowest + shift), min(ends[1], integers.highest + shift)
    if not 0 <= zero <= 255 or lowest > highest:
        return None
    name = integers.name
    if (lowest, highest) != (integers.lowest + shift, integers.highest + shift):
        name = clip_bytes(graph, name, (lowest + zero, highest + zero), node)
    return Integers(name, zero, lowest, highest, integers.shape)


def _by_channel(
    graph: Graph, value: Value, integers: Integers, ends: Ends, node: Any
) -> Integers | None:
    """A depthwise convolution of one position, whose weights are 1."""
    if len(integers.shape) != 4:
        return None
    channels = integers.shape[1]
    weight = np.ones((channels, 1, 1, 1), np.int64)
    ones = Product(node, integers, weight, {"group": channels})
    floats = layer(graph, ones, *_channels(value, channels), ends)
    return to_bytes(graph, floats, 1.0, ends, integers.shape, node)


def _of_average(graph: Graph, value: Value, ends: Ends, node: Any) -> Integers | None:
    average: Any = value.source
    scale, shift = uniform(value.scale), uniform(value.shift)
    if scale is None or scale <= 0 or shift != 0:
        return None
    operand = dequantize(graph, average.read, 1.0, average.node)
    floats = graph.add(average.node.op_type, [operand], average.node, **attributes(average.node))
    step = (1 - _FINER * value.floored) / scale
    return to_bytes(graph, floats, step, ends, graph.shapes[average.node.output[0]], average.node)


_FINER = 2.0**-17
"""Of a step: what is not negative comes to lie above a tie, by less than to the next average."""


def _of_floats(graph: Graph, value: Value, ends: Ends, node: Any) -> Integers | None:
    floats: Any = value.source
    scale, shift = uniform(value.scale), uniform(value.shift)
    if scale is None or shift is None or scale <= 0 or value.moves:
        return None
    name = floats.name
    if shift:
        name = graph.add("Add", [name, graph.initializer(shift / scale, np.float32, "shift")], node)
    return to_bytes(graph, name, 1 / scale, ends, value.shape, node)


_KINDS: dict[type, Callable[..., Integers | None]] = {
    Product: _of_product,
    Integers: _of_integers,
    Sum: _of_integers,
    Average: _of_average,
    Floats: _of_floats,
}


def moved(graph: Graph, integers: Integers, node: Any) -> Integers:
    """What an operation that chooses among positions makes of bytes."""
    name = graph.add(node.op_type, [integers.name, *node.input[1:]], node, **attributes(node))
    shape = graph.shapes[node.output[0]]
    return Integers(name, integers.zero_point, integers.lowest, integers.highest, shape)
