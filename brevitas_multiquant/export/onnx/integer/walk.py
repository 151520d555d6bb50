"""The walk over a QCDQ graph: floats between two integers become factors of one kernel."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from brevitas_multiquant.export.onnx.integer.floats import write_floats
from brevitas_multiquant.export.onnx.integer.graph import Graph, attributes
from brevitas_multiquant.export.onnx.integer.kernels import dequantize, integers_of
from brevitas_multiquant.export.onnx.integer.processors import PAIR_SUMS, Processor
from brevitas_multiquant.export.onnx.integer.quantize import moved, quantize
from brevitas_multiquant.export.onnx.integer.values import (
    Array,
    Average,
    Floats,
    Integers,
    Product,
    Sum,
    Value,
)

Rule = Callable[["Walk", Any], Value | None]
"""What a node of the old graph gives; None: a float tensor, and the node stays as it is."""


class Walk:
    """Rewrites the quantizers of a graph, one after the other.

    Args:
        graph: changed in place.

    Attributes:
        codes: the float output of an old quantizer -> its integers in the new file.
        bytes: tensors between an old quantizer and that.
        left: old layer, by the name of its node -> why it multiplies floats.
    """

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.values: dict[str, Value] = {}
        self.codes: dict[str, Integers] = {}
        self.bytes: set[str] = set()
        self.left: dict[str, str] = {}

    def run(self) -> None:
        """Walk over all nodes, then write what is left in float."""
        for node in self.graph.old:
            if self.graph.keep_constant(node):
                continue
            rule = RULES.get(node.op_type)
            value = rule(self, node) if rule else None
            self.values[node.output[0]] = value or self.as_it_is(node.output[0])
        self._write_floats()

    def value(self, name: str) -> Value:
        """What a tensor is: the image, and what no rule knows, are floats as they are."""
        return self.values.get(name) or self.as_it_is(name)

    def as_it_is(self, name: str) -> Value:
        """A float tensor of the old graph."""
        return Value(Floats(name), self.graph.shapes.get(name, ()))

    def _write_floats(self) -> None:
        """Products that floats are made of: one layer with all factors in it."""
        for name, value in self.values.items():
            if isinstance(value.source, Product) and self._is_read_as_float(name, value):
                write_floats(self.graph, value, name)
                if value.source.weight.ndim > 2:
                    self.left[value.source.node.name] = f"its sums are {self._use(name)}"

    def _use(self, name: str) -> str:
        """What becomes of a float tensor, for people."""
        readers = {node.op_type for node in self.graph.readers.get(name, ())}
        return f"read as floats by {', '.join(sorted(readers))}" if readers else "the output"

    def _is_read_as_float(self, name: str, value: Value) -> bool:
        if name in self.graph.outputs:
            return True
        given = (self.values.get(n.output[0]) for n in self.graph.readers.get(name, ()))
        return any(isinstance(v.source, Floats) for v in given if v is not None)


def _scaled(sign: int) -> Rule:
    def rule(walk: Walk, node: Any) -> Value | None:
        operand = _with_constant(walk, node, commutes=sign > 0)
        if operand is None:
            return None
        value, constant = operand
        return value.times(constant if sign > 0 else 1 / constant)

    return rule


def _shifted(sign: int) -> Rule:
    def rule(walk: Walk, node: Any) -> Value | None:
        operand = _with_constant(walk, node, commutes=sign > 0)
        if operand is not None:
            value, constant = operand
            return value.plus(sign * constant)
        return _sum(walk, node) if sign > 0 else None

    return rule


def _with_constant(walk: Walk, node: Any, commutes: bool) -> tuple[Value, Array] | None:
    """The operand that is no constant, and the one that is, by channel."""
    left, right = node.input
    if commutes and walk.graph.constant(left) is not None:
        left, right = right, left
    constant, value = walk.graph.constant(right), walk.value(left)
    if constant is None or value.floored:
        return None
    by_channel = _by_channel(constant, value)
    return None if by_channel is None else (value, by_channel)


def _by_channel(constant: np.ndarray, value: Value) -> Array | None:
    """A constant as one number, or one for each channel; None where it is neither."""
    if constant.size == 1:
        return float(constant.reshape(()))
    rank = len(value.shape)
    wide = constant.reshape((1,) * (rank - constant.ndim) + constant.shape)
    channels = wide.shape[1] if rank > 1 else 0
    moved_away = any(m.op_type != "MaxPool" for m in value.moves)
    if moved_away or constant.size != channels or constant.ndim > rank:
        return None
    return constant.astype(np.float64).reshape(-1)


def _sum(walk: Walk, node: Any) -> Value | None:
    left, right = (walk.value(name) for name in node.input)
    step = left.step
    if step is None or step != right.step or left.shape != right.shape:
        return None
    a, b = (integers_of(walk.graph, value.source) for value in (left, right))
    if a is None or b is None:
        return None
    total = Sum(node, a, b, step, a.lowest + b.lowest)
    return Value(total, left.shape, scale=step)


def _relu(walk: Walk, node: Any) -> Value | None:
    value = walk.value(node.input[0])
    if value.floored:
        return None
    if isinstance(value.source, Sum) and value.step is not None:
        total = value.source
        return replace(value, source=replace(total, lowest=max(total.lowest, 0)))
    return value.clipped(0.0, np.inf)


def _clip(walk: Walk, node: Any) -> Value | None:
    value = walk.value(node.input[0])
    if node.input[0] in walk.bytes:  # the quantizer has it
        walk.bytes.add(node.output[0])
        return value
    return None if value.floored else value.clipped(*_bounds(walk, node))


def _bounds(walk: Walk, node: Any) -> tuple[float, float]:
    """Of a clip: those that it leaves out are infinite."""
    names = [*node.input[1:], "", ""][:2]
    given = [walk.graph.constant(name) for name in names]
    ends = (-np.inf, np.inf)
    return tuple(float(g) if g is not None else end for g, end in zip(given, ends, strict=True))  # type: ignore[return-value]


def _floor(walk: Walk, node: Any) -> Value | None:
    """Half a step lower, then rounded to the nearest."""
    value = walk.value(node.input[0])
    if value.floored or {n.op_type for n in walk.graph.readers[node.output[0]]} != {
        "QuantizeLinear"
    }:
        return None
    return replace(value.plus(-0.5), floored=True)


def _move(walk: Walk, node: Any) -> Value | None:
    """What chooses among positions is done with integers."""
    value = walk.value(node.input[0])
    shape = walk.graph.shapes[node.output[0]]
    if value.floored or isinstance(value.source, Floats):
        return None
    if isinstance(value.source, (Product, Average)):
        return replace(value, shape=shape, moves=(*value.moves, node))
    falls = np.any(np.asarray(value.scale) < 0)
    by_channel = np.size(value.scale) > 1 or np.size(value.shift) > 1
    integers = integers_of(walk.graph, value.source)
    if integers is None or (falls and node.op_type == "MaxPool"):
        return None
    if by_channel and node.op_type != "MaxPool":
        return None
    return replace(value, source=moved(walk.graph, integers, node), shape=shape)


def _pool(walk: Walk, node: Any) -> Value | None:
    value = walk.value(node.input[0])
    step = value.step
    integers = integers_of(walk.graph, value.source)
    if integers is None or step is None:
        return None
    return Value(Average(node, integers), walk.graph.shapes[node.output[0]], scale=step)


def _layer(walk: Walk, node: Any) -> Value | None:
    """A convolution or matrix product of integers with weights that are integers."""
    value, weight = walk.value(node.input[0]), walk.graph.constant(node.input[1])
    step, integers = value.step, integers_of(walk.graph, value.source)
    if weight is None or np.any(weight != np.rint(weight)):
        walk.left[node.name] = "its weights are floats"
        return None
    if integers is None or step is None:
        walk.left[node.name] = "it reads floats"
        return None
    if node.op_type == "MatMul":
        weight = weight.T
    if len(node.input) > 2:
        walk.left[node.name] = "it has a bias of floats"
        return None
    product = Product(node, integers, weight.astype(np.int64), attributes(node))
    return Value(product, walk.graph.shapes[node.output[0]], scale=step)


def _quantize(walk: Walk, node: Any) -> Value | None:
    """The integers of a quantizer; of its clip and dequantization, which follow, later."""
    value = walk.value(node.input[0])
    scale, zero = (walk.graph.constant(name) for name in node.input[1:3])
    assert scale is not None and zero is not None
    limits = np.iinfo(zero.dtype)
    ends = (limits.min - int(zero), limits.max - int(zero))
    readers = walk.graph.readers[node.output[0]]
    if len(readers) == 1 and readers[0].op_type == "Clip":
        given = (walk.graph.constant(name) for name in readers[0].input[1:3])
        ends = tuple(int(end) for end in given if end is not None)  # type: ignore[assignment]
    scaled = value.times(1 / float(scale))
    assert scaled is not None
    integers = quantize(walk.graph, scaled, ends, node)
    if integers is None:
        integers = quantize(walk.graph, replace(walk.as_it_is(node.input[0])), ends, node)
    assert integers is not None
    walk.bytes.add(node.output[0])
    return Value(integers, value.shape, scale=float(scale))


def _dequantize(walk: Walk, node: Any) -> Value | None:
    value = walk.value(node.input[0])
    integers, step = value.source, float(value.scale)
    assert isinstance(integers, Integers)
    walk.codes[node.output[0]] = integers
    dequantize(walk.graph, integers, step, node, node.output[0])
    return value


MOVES = ("MaxPool", "Flatten", "Reshape", "Squeeze", "Slice", "Gather", "Identity")
"""Operators that choose among numbers, whatever those are."""

RULES: dict[str, Rule] = {
    "Mul": _scaled(1),
    "Div": _scaled(-1),
    "Add": _shifted(1),
    "Sub": _shifted(-1),
    "Relu": _relu,
    "Floor": _floor,
    "Conv": _layer,
    "MatMul": _layer,
    "GlobalAveragePool": _pool,
    "AveragePool": _pool,
    "QuantizeLinear": _quantize,
    "DequantizeLinear": _dequantize,
    "Clip": _clip,
    **dict.fromkeys(MOVES, _move),
}
"""ONNX operator -> its rule."""


@dataclass(frozen=True)
class Rewritten:
    """A file of integers.

    Args:
        model: ``onnx.ModelProto``.
        codes: the float output of a quantizer in the QCDQ model -> its integers.
        left: name of a layer's node in the QCDQ model -> why it multiplies floats.
    """

    model: Any
    codes: dict[str, Integers]
    left: dict[str, str]


def to_integer(model: Any, processor: Processor = "any") -> Rewritten:
    """A QCDQ model in the form that onnxruntime runs on integers.

    Args:
        model: of `to_onnx`; not changed.
        processor: that runs it, of `PAIR_SUMS`.
    """
    walk = Walk(Graph(model, PAIR_SUMS[processor]))
    walk.run()
    return Rewritten(walk.graph.finished(), walk.codes, walk.left)
