"""qonnx's execution, node by node, in time linear in the number of nodes."""

from collections.abc import Collection
from typing import Any

import numpy as np


def session_of(model: Any) -> Any:
    """An onnxruntime session of a model, on the CPU, that warns of nothing.

    Args:
        model: ``onnx.ModelProto``.
    """
    from onnxruntime import InferenceSession, SessionOptions

    options = SessionOptions()
    options.log_severity_level = (
        3  # errors: warnings of parameters that nothing reads are of no use
    )
    providers = ["CPUExecutionProvider"]
    return InferenceSession(model.SerializeToString(), options, providers=providers)


def execute(model: Any, images: np.ndarray, wanted: Collection[str]) -> dict[str, np.ndarray]:
    """Tensors of a QONNX model for ``images``.

    Each node runs as ``qonnx.core.onnx_exec.execute_onnx`` runs it, but looks for its shapes
    among its own tensors instead of all, and a tensor that no node needs any more is freed.

    Args:
        model: ``onnx.ModelProto`` of `brevitas_multiquant.export.qonnx.cleanup.clean_up`.
        images: for the model's only input.
        wanted: names of the tensors to return.
    """
    from onnx import numpy_helper
    from qonnx.core.onnx_exec import execute_node

    graph = model.graph
    opset = next(opset.version for opset in model.opset_import if opset.domain == "")
    values = {v.name: v for v in (*graph.input, *graph.output, *graph.value_info)}
    context: dict[str, Any] = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
    context[""] = None  # an input that is left out
    context[graph.input[0].name] = images
    last_reader = {name: index for index, node in enumerate(graph.node) for name in node.input}
    for index, node in enumerate(graph.node):
        for name in node.output:
            context[name] = _placeholder(values[name])
        names = [name for name in dict.fromkeys((*node.input, *node.output)) if name]
        execute_node(node, context, _tiny_graph([values[n] for n in names]), opset, True)
        for name in names:
            if name not in wanted and last_reader.get(name, index) <= index:
                context.pop(name, None)
    return {name: context[name] for name in wanted}


def _placeholder(value: Any) -> np.ndarray:
    """An array of the right shape that takes no memory: the executor compares shapes."""
    shape = [dimension.dim_value for dimension in value.type.tensor_type.shape.dim]
    return np.broadcast_to(np.float32(0), shape)


def _tiny_graph(values: list[Any]) -> Any:
    from onnx.helper import make_graph

    return make_graph([], "node", [], [], value_info=values)
