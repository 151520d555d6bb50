"""The nodes that onnxruntime fuses into kernels of integers.

Nearly all are of one form: operands from bytes to floats, one operation, and back to bytes. A scale
stands at the weights, one for each channel; those in front and behind are 1, so that bytes are the
codes that the network was trained with.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from brevitas_multiquant.export.onnx.integer.graph import Graph
from brevitas_multiquant.export.onnx.integer.values import Integers, Product, Source, Sum
from brevitas_multiquant.export.onnx.integer.weights import Weights, folded

BYTES = 255
SIGNED_ZERO = 128
"""The byte that stands for 0 where integers can be negative."""


def zero_point_of(lowest: int, highest: int) -> int | None:
    """The byte that stands for 0; None where bytes cannot hold these integers.

    Example:
        >>> zero_point_of(0, 255), zero_point_of(-128, 127), zero_point_of(-256, 254)
        (0, 128, None)
    """
    zero = 0 if lowest >= 0 else SIGNED_ZERO
    return zero if lowest + zero >= 0 and highest + zero <= BYTES else None


def dequantize(
    graph: Graph, integers: Integers, scale: float, like: Any, output: str | None = None
) -> str:
    """Integers times a number, as floats."""
    return graph.add(
        "DequantizeLinear",
        [
            integers.name,
            graph.initializer(scale, np.float32, "scale"),
            graph.initializer(integers.zero_point, np.uint8, "zero_point"),
        ],
        like,
        output,
    )


def to_bytes(
    graph: Graph,
    floats: str,
    scale: float,
    ends: tuple[int, int],
    shape: Sequence[int],
    like: Any,
    reach: tuple[int, int] | None = None,
) -> Integers | None:
    """Floats divided by a number, rounded, and clipped where bytes do not end there themselves.

    Args:
        graph: gets the nodes.
        floats: name of the tensor.
        scale: what it is divided by.
        ends: smallest and largest integer.
        shape: of the tensor.
        like: the old node whose work that is.
        reach: integers that can occur anyway, if that is known.
    """
    lowest, highest = ends
    zero = zero_point_of(lowest, highest)
    if zero is None:
        return None
    place = graph.initializer(zero, np.uint8, "zero_point")
    divisor = graph.initializer(scale, np.float32, "scale")
    name = graph.add("QuantizeLinear", [floats, divisor, place], like)
    low, high = reach or (-zero - 1, BYTES - zero + 1)
    cut = (lowest > max(low, -zero), highest < min(high, BYTES - zero))
    if any(cut):
        name = clip_bytes(graph, name, (lowest + zero, highest + zero), like)
    return Integers(name, zero, lowest, highest, tuple(shape))


def clip_bytes(graph: Graph, name: str, ends: tuple[int, int], like: Any) -> str:
    """Bytes between two bytes."""
    bounds = [graph.initializer(end, np.uint8, "end") for end in ends]
    return graph.add("Clip", [name, *bounds], like)


def integers_of(graph: Graph, source: Source) -> Integers | None:
    """A source as bytes, if it is integers and bytes hold them; a sum is computed once."""
    if isinstance(source, Integers):
        return source
    if not isinstance(source, Sum):
        return None
    return graph.once(source, lambda: _added(graph, source))


def _added(graph: Graph, total: Sum) -> Integers | None:
    if zero_point_of(total.lowest, total.highest) is None:
        return None
    operands = [dequantize(graph, one, 1.0, total.node) for one in (total.left, total.right)]
    floats = graph.add("Add", operands, total.node)
    ends, reach = (
        (lowest, total.highest) for lowest in (total.lowest, total.left.lowest + total.right.lowest)
    )
    return to_bytes(graph, floats, 1.0, ends, total.left.shape, total.node, reach)


COARSE = 15
"""Most steps of integers that are coarse: one that is off moves the logits."""


def layer(
    graph: Graph,
    product: Product,
    scale: np.ndarray,
    shift: np.ndarray | None = None,
    ends: tuple[int, int] | None = None,
) -> str:
    """A convolution or linear layer with integer weights, a scale and a bias for each channel.

    Args:
        graph: gets the nodes.
        product: of integers by integers.
        scale: of each output channel.
        shift: of each output channel, added before it is rounded to integers; None: nothing.
        ends: smallest and largest of these integers.
    """
    weights = folded(product, scale, shift, ends, graph.pair_sum)
    if shift is not None and ends is not None and _is_off(weights, ends):
        return _sums(graph, product, scale, shift, weights)
    return _fused(graph, product, weights)


def _is_off(weights: Weights, ends: tuple[int, int]) -> bool:
    """Whether a whole bias costs more than a slower kernel: bytes times bytes to coarse integers.

    That is a stem. Smaller weights have room for finer steps, where sums come right or nearly so.
    """
    return not weights.exact and ends[1] - ends[0] <= COARSE and weights.room == 1


def _fused(graph: Graph, product: Product, weights: Weights) -> str:
    """Operands from bytes to floats, and one operation: a kernel with a bias of whole steps."""
    is_linear = product.weight.ndim == 2
    # onnxruntime has a kernel for the scales of columns
    integers, axis = (weights.integers.T, 1) if is_linear else (weights.integers, 0)
    of_channel = graph.initializer(weights.scale, np.float32, "scale")
    inputs = [
        dequantize(graph, product.read, 1.0, product.node),
        graph.add(
            "DequantizeLinear",
            [
                graph.initializer(integers, weights.dtype, "weight"),
                of_channel,
                graph.initializer(
                    np.full(len(weights.scale), weights.zero_point), weights.dtype, "zero_point"
                ),
            ],
            product.node,
            axis=axis,
        ),
    ]
    if weights.bias.any():
        zeros = graph.initializer(np.zeros_like(weights.scale), np.int32, "zero_point")
        bias = graph.initializer(weights.bias, np.int32, "bias")
        inputs.append(
            graph.add("DequantizeLinear", [bias, of_channel, zeros], product.node, axis=0)
        )
    if is_linear:
        return graph.add("Gemm", inputs, product.node)
    return graph.add("Conv", inputs, product.node, **product.geometry)


def _sums(
    graph: Graph, product: Product, scale: np.ndarray, shift: np.ndarray, weights: Weights
) -> str:
    """Sums as integers, then a scale and a shift of floats: slower, and any line is possible."""
    from onnx import TensorProto

    node, is_linear = product.node, product.weight.ndim == 2
    kind = "MatMulInteger" if is_linear else "ConvInteger"
    inputs = [
        product.read.name,
        graph.initializer(weights.integers.T if is_linear else weights.integers, weights.dtype),
        graph.initializer(product.read.zero_point, np.uint8, "zero_point"),
        graph.initializer(weights.zero_point, weights.dtype, "zero_point"),
    ]
    sums = graph.add(kind, inputs, node, **({} if is_linear else product.geometry))
    floats = graph.add("Cast", [sums], node, to=TensorProto.FLOAT)
    shape = (-1,) if is_linear else (-1, *(1,) * (product.weight.ndim - 2))
    for operator, numbers in (("Mul", scale / weights.times), ("Add", shift)):
        operand = graph.initializer(numbers.reshape(shape), np.float32, operator.lower())
        floats = graph.add(operator, [floats, operand], node)
    return floats
