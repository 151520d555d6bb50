"""The hardware that FINN makes of an integer network, as layers with a cost, without FINN."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import gcd
from typing import Any

from torch import Tensor, eye

from brevitas_multiquant.core.power_of_two import integer_range
from brevitas_multiquant.cost.luts import (
    ConvolutionShape,
    Duplication,
    MatrixProduct,
    Node,
    Padding,
    Pool,
    Window,
    integer_bits,
    nodes,
    threshold_bits,
)
from brevitas_multiquant.cost.luts.widths import accumulator_range
from brevitas_multiquant.export.finn.integer_graph import (
    Addition,
    ChannelPick,
    ChannelSlice,
    Concatenation,
    Convolution,
    IntegerGraph,
    Layer,
    MaxPool,
    PositionSum,
    Product,
    Stream,
    Subtraction,
    Thresholds,
    Upsampling,
)
from brevitas_multiquant.export.finn.integer_graph import Padding as ZeroPadding


@dataclass(frozen=True)
class Integers:
    """A type of hardware: FINN bounds numbers by their types, not by what can occur.

    Args:
        bits: of each.
        signed: whether they can be negative.
    """

    bits: int
    signed: bool

    @classmethod
    def holding(cls, lowest: int, highest: int) -> "Integers":
        """The narrowest type from ``lowest`` to ``highest``.

        Example:
            >>> Integers.holding(-3, 3)
            Integers(bits=3, signed=True)
        """
        return cls(integer_bits(lowest, highest), lowest < 0)

    @property
    def range(self) -> tuple[int, int]:
        """Smallest and largest integer.

        Example:
            >>> Integers(4, signed=False).range
            (0, 15)
        """
        return integer_range(self.bits, signed=self.signed)


Made = tuple[Sequence[Node], Integers]


def hardware_layers(graph: IntegerGraph) -> tuple[Node, ...]:
    """Layers of hardware; how parallel they are, `brevitas_multiquant.cost.luts.fold` decides.

    Widths of sums and thresholds are those of the weights and tables of the network.

    Args:
        graph: of `brevitas_multiquant.export.finn.lower.lower`.
    """
    return tuple(node for _, node in named_layers(graph))


def named_layers(graph: IntegerGraph, writable: bool = False) -> list[tuple[str, Node]]:
    """The same layers, each with the stream that it belongs to.

    A stream's layers are those that make it of others, a convolution with its padding and window,
    and what copies it.

    Args:
        graph: of `brevitas_multiquant.export.finn.lower.lower`.
        writable: whether tables can be written at run time; their integers are then as wide as any
            table may need.
    """
    types = {graph.input.name: Integers.holding(graph.input.lowest, graph.input.highest)}
    readers = Counter(stream.name for layer in graph.layers for stream in layer.inputs)
    made = [(graph.input.name, copy) for copy in _copies(graph.input, readers)]
    for layer in graph.layers:
        name = layer.output.name
        inputs = [types[stream.name] for stream in layer.inputs]
        layers, kind = _RULES[type(layer)](layer, inputs, name == graph.output.name)
        types[name] = kind
        if writable and isinstance(layer, Thresholds):
            # any table may come: an integer above the sums, as `RoundAndClipThresholds` has it
            layers = [_with_table_bits(node, inputs[0].bits + 1) for node in layers]
        made += [(name, node) for node in (*layers, *_copies(layer.output, readers))]
    return made


def _copies(stream: Stream, readers: Counter[str]) -> list[Node]:
    """A stream that several layers read is copied."""
    if readers[stream.name] < 2:
        return []
    return [Duplication(stream.shape[0], _positions(stream))]


def _positions(stream: Stream) -> int:
    return stream.shape[1] * stream.shape[2]


def _convolution(layer: Convolution, inputs: Sequence[Integers], is_last: bool) -> Made:
    channels, height, width = layer.inputs[0].shape
    shape = ConvolutionShape(
        channels,
        layer.output.shape[0],
        (height, width),
        (layer.weight.shape[2], layer.weight.shape[3]),
        layer.stride,
        layer.padding,
        layer.dilation,
        depthwise=layer.groups == channels > 1,
    )
    return _product(shape, layer.weight, inputs[0], is_last)


def _product(shape: ConvolutionShape, weight: Tensor, source: Integers, is_last: bool) -> Made:
    weights = Integers.holding(int(weight.min()), int(weight.max()))
    # zeros and ones would be of one bit, a type that is not built
    held = replace(weights, bits=max(weights.bits, 2), signed=weights.signed or weights.bits == 1)
    sums = Integers.holding(*accumulator_range(weight.detach().numpy(), *source.range))
    if is_last:
        sums = replace(sums, bits=-(-sums.bits // 8) * 8)
    *before, product = shape.layers(
        *(held.bits, source.bits),
        accumulator_bits=sums.bits,
        signed_activations=source.signed,
    )
    changes: dict[str, Any] = {"signed_weights": held.signed}
    if isinstance(product, MatrixProduct):
        changes["narrow"] = int(weight.min()) > held.range[0]
    return [*before, replace(product, **changes)], sums


def _channel_slice(layer: ChannelSlice, inputs: Sequence[Integers], is_last: bool) -> Made:
    channels, height, width = layer.inputs[0].shape
    kept = layer.output.shape[0]
    shape = ConvolutionShape(channels, kept, (height, width))
    return _product(shape, eye(kept, channels), inputs[0], is_last)


def _channel_pick(layer: ChannelPick, inputs: Sequence[Integers], is_last: bool) -> Made:
    channels, height, width = layer.inputs[0].shape
    weight = layer.weight
    shape = ConvolutionShape(
        *(channels, layer.output.shape[0], (height, width)),
        *((weight.shape[2], weight.shape[3]), layer.stride),
    )
    return _product(shape, weight, inputs[0], is_last)


def _thresholds(layer: Thresholds, inputs: Sequence[Integers], is_last: bool) -> Made:
    (source,), (lowest, highest) = inputs, inputs[0].range
    table = layer.table.clamp(lowest, highest + 1)
    bits = threshold_bits(int(table.min()), int(table.max()), source.bits, source.signed)
    layers = [nodes.Thresholds(layer.output.shape[0], _positions(layer.output), bits, layer.bits)]
    return layers, Integers(layer.bits, layer.first_code < 0)


def _with_table_bits(node: Any, bits: int) -> Node:
    return replace(node, threshold_bits=bits)


def _addition(layer: Addition, inputs: Sequence[Integers], is_last: bool) -> Made:
    """Follows ``ElementwiseAdd._derive_out_dtype``: by widths, not by what the sums can be."""
    narrow, wide = sorted(inputs, key=lambda one: one.bits)
    if narrow.bits == wide.bits:
        wide, narrow = inputs
    signed = narrow.signed or wide.signed
    more = 2 if narrow.signed and not wide.signed else 1
    layers = [nodes.Addition(layer.output.shape[0], _positions(layer.output))]
    return layers, Integers(wide.bits + more, signed)


def _subtraction(layer: Subtraction, inputs: Sequence[Integers], is_last: bool) -> Made:
    """Follows ``ElementwiseSub._derive_out_dtype``: signed always."""
    (layers, kind) = _addition(layer, inputs, is_last)  # type: ignore[arg-type]
    return layers, replace(kind, signed=True)


def _multiplication(layer: Product, inputs: Sequence[Integers], is_last: bool) -> Made:
    """Follows ``ElementwiseMul._derive_out_dtype``."""
    bits, signed = sum(one.bits for one in inputs), any(one.signed for one in inputs)
    layers = [nodes.Addition(layer.output.shape[0], _positions(layer.output))]
    return layers, Integers(bits, signed)


def _concatenation(layer: Concatenation, inputs: Sequence[Integers], is_last: bool) -> Made:
    channels = [stream.shape[0] for stream in layer.inputs]
    lowest, highest = zip(*(one.range for one in inputs), strict=True)
    made = nodes.Concatenation(sum(channels), _positions(layer.output), common=gcd(*channels))
    return [made], Integers.holding(min(*lowest, 0), max(highest))


def _upsampling(layer: Upsampling, inputs: Sequence[Integers], is_last: bool) -> Made:
    return [nodes.Upsampling(layer.output.shape[0], _positions(layer.output))], inputs[0]


def _padding(layer: ZeroPadding, inputs: Sequence[Integers], is_last: bool) -> Made:
    return [Padding(layer.output.shape[0], _positions(layer.output))], inputs[0]


def _max_pool(layer: MaxPool, inputs: Sequence[Integers], is_last: bool) -> Made:
    channels, height, width = layer.inputs[0].shape
    rows, columns = layer.padding
    size = (height + 2 * rows, width + 2 * columns)
    window = Window(
        *(channels, size, layer.kernel, inputs[0].bits), stride=layer.stride, depthwise=True
    )
    made: list[Node] = [Padding(channels, size[0] * size[1])] if any(layer.padding) else []
    return [*made, window, Pool(channels, layer.kernel, _positions(layer.output))], inputs[0]


def _position_sum(layer: PositionSum, inputs: Sequence[Integers], is_last: bool) -> Made:
    (source,), count = inputs, _positions(layer.inputs[0])
    extreme = source.range[0] if source.signed else source.range[1]
    kind = Integers.holding(min(count * extreme, 0), max(count * extreme, 0))
    return [nodes.PositionSum(layer.output.shape[0], count)], kind


_RULES: dict[type[Layer], Callable[[Any, Sequence[Integers], bool], Made]] = {
    Convolution: _convolution,
    ChannelSlice: _channel_slice,
    Thresholds: _thresholds,
    Addition: _addition,
    ChannelPick: _channel_pick,
    Subtraction: _subtraction,
    Product: _multiplication,
    Concatenation: _concatenation,
    Upsampling: _upsampling,
    ZeroPadding: _padding,
    MaxPool: _max_pool,
    PositionSum: _position_sum,
}


def made_of(layer: Layer, inputs: Sequence[Integers], is_last: bool) -> Made:
    """What one layer becomes, and the type that it gives.

    Args:
        layer: of an integer network.
        inputs: types of what it reads.
        is_last: whether its output leaves the FPGA.
    """
    return _RULES[type(layer)](layer, inputs, is_last)
