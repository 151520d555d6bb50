"""An ONNX graph that is being rewritten: what its tensors are, and new nodes among the old."""

from collections.abc import Callable
from typing import Any

import numpy as np

from brevitas_multiquant.export.onnx.integer.processors import PAIR_SUMS


class Graph:
    """The nodes of a model, in order, with new ones put in between.

    A new node stands in front of the old one whose work it does; `finished` leaves out what nobody
    reads any more.

    Args:
        model: ``onnx.ModelProto`` of static shapes; not changed.
        pair_sum: what kernels hold that multiply bytes, of `PAIR_SUMS`.
    """

    def __init__(self, model: Any, pair_sum: int = PAIR_SUMS["any"]) -> None:
        from onnx import numpy_helper, shape_inference

        self.pair_sum = pair_sum
        self._model = shape_inference.infer_shapes(model)
        graph = self._model.graph
        self.old = list(graph.node)
        self.outputs = [value.name for value in graph.output]
        self.shapes = {
            value.name: tuple(d.dim_value for d in value.type.tensor_type.shape.dim)
            for value in (*graph.input, *graph.value_info, *graph.output)
        }
        self.readers: dict[str, list[Any]] = {}
        for node in self.old:
            for name in node.input:
                self.readers.setdefault(name, []).append(node)
        self._constants = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
        self._new: dict[tuple[bytes, str, tuple[int, ...]], str] = {}
        self._before: dict[str, list[Any]] = {}
        self._taken_over: set[str] = set()
        self._made: dict[int, tuple[Any, Any]] = {}
        self._count = 0

    def constant(self, name: str) -> np.ndarray | None:
        """The value of a tensor that no image changes; None of any other."""
        return self._constants.get(name)

    def keep_constant(self, node: Any) -> bool:
        """Compute a node of constants; whether it was one."""
        values = [self._constants.get(name) for name in node.input if name]
        if node.op_type not in _CONSTANTS or any(value is None for value in values):
            return False
        self._constants[node.output[0]] = _CONSTANTS[node.op_type](node, *values)
        return True

    def initializer(self, array: Any, dtype: Any, hint: str = "constant") -> str:
        """Name of a constant of the new file; equal ones are one."""
        value = np.array(array, dtype=dtype, order="C")
        key = (value.tobytes(), value.dtype.str, value.shape)
        if key not in self._new:
            name = self._fresh(hint)
            self._new[key], self._constants[name] = name, value
        return self._new[key]

    def add(
        self, kind: str, inputs: list[str], like: Any, output: str | None = None, **more: Any
    ) -> str:
        """A new node.

        Args:
            kind: of ONNX's operators.
            inputs: names of tensors.
            like: the old node whose work it does: it has its place, and its name.
            output: the old tensor that it gives from now on; default: a new one.
            more: attributes.

        Returns:
            The name of its output.
        """
        from onnx.helper import make_node

        name = self._fresh(f"{like.name.rpartition('/')[0]}/{kind}")
        made = output or f"{name}_output"
        self._before.setdefault(like.output[0], []).append(
            make_node(kind, inputs, [made], name=name, **more)
        )
        if output is not None:
            self._taken_over.add(output)
        return made

    def once(self, key: Any, make: Callable[[], Any]) -> Any:
        """What ``make`` gives for this object, made the first time."""
        if id(key) not in self._made:
            self._made[id(key)] = key, make()
        return self._made[id(key)][1]

    def finished(self) -> Any:
        """The rewritten model: the nodes, and the constants, that its outputs need."""
        from onnx import numpy_helper

        kept, needed = [], set(self.outputs)
        for node in reversed(self._in_order()):
            if needed.isdisjoint(node.output):
                continue
            kept.append(node)
            needed.update(node.input)
        graph = self._model.graph
        for field in (graph.node, graph.initializer, graph.value_info):
            del field[:]
        graph.node.extend(reversed(kept))
        graph.initializer.extend(
            numpy_helper.from_array(value, name)
            for name, value in self._constants.items()
            if name in needed
        )
        return self._model

    def _in_order(self) -> list[Any]:
        """New and old nodes."""
        nodes: list[Any] = []
        for node in self.old:
            nodes += self._before.get(node.output[0], ())
            if node.output[0] not in self._taken_over and node.output[0] not in self._constants:
                nodes.append(node)
        return nodes

    def _fresh(self, hint: str) -> str:
        self._count += 1
        return f"{hint}_{self._count}"


def attributes(node: Any) -> dict[str, Any]:
    """A node's attributes by name."""
    from onnx.helper import get_attribute_value

    return {attribute.name: get_attribute_value(attribute) for attribute in node.attribute}


def _constant(node: Any) -> np.ndarray:
    from onnx import numpy_helper

    return numpy_helper.to_array(node.attribute[0].t)  # type: ignore[no-any-return]


def _dequantized(
    node: Any, integers: np.ndarray, scale: np.ndarray, zero_point: np.ndarray
) -> np.ndarray:
    assert not scale.ndim, "weights have one scale"
    return ((integers.astype(np.float32) - zero_point) * scale).astype(np.float32)


_CONSTANTS: dict[str, Any] = {
    "Constant": _constant,
    "Identity": lambda node, value: value,
    "Clip": lambda node, value, lowest, highest: value.clip(lowest, highest),
    "DequantizeLinear": _dequantized,
    "Transpose": lambda node, value: value.transpose(attributes(node)["perm"]),
}
"""Operators between a weight in the file and the layer that reads it."""
