"""Nodes that read constants alone become constants, in time linear in the number of nodes.

qonnx's ``FoldConstants`` folds one node and infers all shapes anew, which takes minutes for the
heads of a detector over the levels of a pyramid.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from brevitas_multiquant.export.qonnx.execute import session_of


def fold_constants(proto: Any, infer_shapes: Callable[[Any], None]) -> None:
    """Fold until nothing can be folded; nodes of other domains than ONNX's, quantizers, stay.

    Args:
        proto: ``onnx.ModelProto`` with known shapes, nodes in the order of execution; changed.
        infer_shapes: of the model: what was computed from constants is known afterwards.
    """
    while foldable := _foldable(proto.graph):
        _fold(proto, foldable)
        infer_shapes(proto)


def _foldable(graph: Any) -> list[int]:
    """Which nodes have constants alone as inputs, or are the shape of a tensor that has one."""
    known, shapes = {tensor.name for tensor in graph.initializer}, _known_shapes(graph)
    found = []
    for index, node in enumerate(graph.node):
        constant = known.issuperset(node.input) or _is_shape(node, shapes)
        if constant and not node.domain:
            found.append(index)
            known.update(node.output)
    return found


def _is_shape(node: Any, shapes: dict[str, list[int]]) -> bool:
    return node.op_type == "Shape" and node.input[0] in shapes


def _known_shapes(graph: Any) -> dict[str, list[int]]:
    """Tensor -> its shape, where no size of it is open."""
    shapes = {}
    for value in (*graph.input, *graph.value_info):
        shape = value.type.tensor_type.shape
        sizes = [dimension.dim_value for dimension in shape.dim]
        if value.type.tensor_type.HasField("shape") and all(sizes):
            shapes[value.name] = sizes
    return shapes


def _fold(proto: Any, foldable: list[int]) -> None:
    """Run the nodes at once, as a model without inputs; what others read of it is a constant."""
    from onnx import numpy_helper

    graph, shapes = proto.graph, _known_shapes(proto.graph)
    chosen = set(foldable)
    for index in foldable:
        node = graph.node[index]
        if _is_shape(node, shapes):
            sizes = np.array(shapes[node.input[0]], np.int64)
            graph.initializer.append(numpy_helper.from_array(sizes, node.output[0]))
            chosen.discard(index)
    nodes = [graph.node[index] for index in sorted(chosen)]
    rest = [node for index, node in enumerate(graph.node) if index not in set(foldable)]
    read = {name for node in rest for name in node.input} | {out.name for out in graph.output}
    wanted = [name for node in nodes for name in node.output if name in read]
    for name, value in _values(proto, nodes, wanted).items():
        graph.initializer.append(numpy_helper.from_array(value, name))
    for index in sorted(foldable, reverse=True):
        del graph.node[index]


def _values(proto: Any, nodes: list[Any], wanted: list[str]) -> dict[str, np.ndarray]:
    """What nodes without inputs from elsewhere give."""
    from onnx import helper

    if not wanted:
        return {}
    needed = {name for node in nodes for name in node.input}
    constants = [tensor for tensor in proto.graph.initializer if tensor.name in needed]
    outputs = [helper.make_empty_tensor_value_info(name) for name in wanted]
    graph = helper.make_graph(nodes, "constants", [], outputs, constants)
    opsets = [opset for opset in proto.opset_import if not opset.domain]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=proto.ir_version)
    return dict(zip(wanted, session_of(model).run(wanted, {}), strict=True))
