"""What stays float, written so that it costs least."""

import numpy as np

from brevitas_multiquant.export.onnx.integer.graph import Graph
from brevitas_multiquant.export.onnx.integer.kernels import dequantize, layer
from brevitas_multiquant.export.onnx.integer.values import Product, Value


def write_floats(graph: Graph, value: Value, name: str) -> None:
    """A product of integers that floats are made of: one layer with all factors in it.

    A linear layer multiplies integers and gives floats; onnxruntime has no such convolution that
    would be faster than one of floats.

    Args:
        graph: gets the nodes.
        value: of a `Product`.
        name: the old float tensor; stays as it is where the value was moved.
    """
    product = value.source
    assert isinstance(product, Product)
    if value.moves or value.floored:
        return
    count = len(product.weight)
    scale, shift = (
        np.broadcast_to(np.asarray(n, np.float64).reshape(-1), (count,))
        for n in (value.scale, value.shift)
    )
    last = None if value.is_bounded else name
    if product.weight.ndim == 2:
        made = layer(graph, product, scale)
        made = graph.add(
            "Add", [made, graph.initializer(shift, np.float32, "bias")], product.node, last
        )
    else:
        weight = product.weight * scale.reshape(-1, *(1,) * (product.weight.ndim - 1))
        inputs = [
            dequantize(graph, product.read, 1.0, product.node),
            graph.initializer(weight, np.float32, "weight"),
            graph.initializer(shift, np.float32, "bias"),
        ]
        made = graph.add("Conv", inputs, product.node, last, **product.geometry)
    if value.is_bounded:
        _bounded(graph, value, made, name)


def _bounded(graph: Graph, value: Value, made: str, name: str) -> None:
    product = value.source
    assert isinstance(product, Product)
    shape = (1, -1, *(1,) * (product.weight.ndim - 2))
    for kind, bound in (("Max", value.lowest), ("Min", value.highest)):
        last = name if kind == "Min" else None
        limit = np.asarray(bound).reshape(shape if np.size(bound) > 1 else ())
        made = graph.add(
            kind, [made, graph.initializer(limit, np.float32, "end")], product.node, last
        )
