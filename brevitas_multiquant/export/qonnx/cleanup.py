"""What ``qonnx.util.cleanup.cleanup_model`` does, in time linear in the number of nodes.

qonnx searches the whole graph for each tensor that it renames, which takes minutes for the four
branches of a ResNet-50. The result is the same, except for the order of nodes, which stays that of
execution, and with it the numbers in their names.
"""

from collections import Counter
from typing import Any

import numpy as np

from brevitas_multiquant.export.qonnx.constants import fold_constants
from brevitas_multiquant.export.qonnx.execute import session_of

DOMAIN = "qonnx.custom_op.general"
_QUANTIZERS = ("Quant",)


def clean_up(proto: Any) -> Any:
    """A graph with known shapes, folded constants, one name a node and tensor.

    Args:
        proto: ``onnx.ModelProto`` of Brevitas's QONNX exporter; changed.

    Returns:
        The cleaned-up ``onnx.ModelProto``.
    """
    _set_domain(proto)
    _take_branches(proto)
    _infer_shapes(proto)
    fold_constants(proto, _infer_shapes)
    _resize_by_factors(proto.graph)
    _settle_omitted_inputs(proto.graph)
    _own_parameters(proto.graph)
    _name(proto.graph)
    return proto


def _set_domain(proto: Any) -> None:
    from onnx.helper import make_opsetid

    for node in proto.graph.node:
        if node.op_type in _QUANTIZERS:
            node.domain = DOMAIN
    kept = [opset for opset in proto.opset_import if opset.domain == ""]
    del proto.opset_import[:]
    proto.opset_import.extend([*kept, make_opsetid(DOMAIN, 1)])


def unsigned_bits(graph: Any) -> None:
    """Quantizers of one bit, which Brevitas writes as those to -1 and 1, give codes 0 and 1.

    All of them are of activations, whose codes are unsigned; weights of -1 and 1 have two bits.

    Args:
        graph: as Brevitas's QONNX exporter wrote it; changed.
    """
    from onnx import numpy_helper
    from onnx.helper import make_attribute

    for node in graph.node:
        if node.op_type != "BipolarQuant":
            continue
        node.op_type = "Quant"
        for what, value in (("zero_point", 0.0), ("bit_width", 1.0)):
            tensor = numpy_helper.from_array(np.array(value, np.float32), f"{node.name}/{what}")
            graph.initializer.append(tensor)
            node.input.append(tensor.name)
        facts = {"signed": 0, "narrow": 0, "rounding_mode": "ROUND"}
        node.attribute.extend(make_attribute(name, value) for name, value in facts.items())


def _settle_omitted_inputs(graph: Any) -> None:
    """No input is named "": qonnx's executor looks for a tensor of that name.

    The last ones can be left out; in front of others, as in a resize, an empty tensor stands.
    """
    from onnx import TensorProto
    from onnx.helper import make_tensor

    for node in graph.node:
        while node.input and not node.input[-1]:
            node.input.pop()
        for index, name in enumerate(node.input):
            if not name:
                node.input[index] = f"{node.output[0]}/omitted{index}"
                empty = make_tensor(node.input[index], TensorProto.FLOAT, [0], [])
                graph.initializer.append(empty)
                graph.value_info.append(_value_info(empty))


def _resize_by_factors(graph: Any) -> None:
    """A resize to sizes becomes one by factors: sizes would stand behind an input named ""."""
    from onnx import numpy_helper

    values = {value.name: value for value in (*graph.input, *graph.value_info)}
    constants = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type != "Resize" or len(node.input) < 4 or node.input[3] not in constants:
            continue
        before = [d.dim_value for d in values[node.input[0]].type.tensor_type.shape.dim]
        after = numpy_helper.to_array(constants[node.input[3]])
        factors = np.array([_factor(*sizes) for sizes in zip(before, after, strict=True)])
        name = f"{node.output[0]}/factors"
        tensor = numpy_helper.from_array(factors, name)
        graph.initializer.append(tensor)
        graph.value_info.append(_value_info(tensor))
        del node.input[2:]
        node.input.append(name)


def _factor(old: int, new: int) -> np.float32:
    """The fp32 factor that makes ``new`` positions of ``old``: executors round the product down."""
    factor = np.float32(new) / np.float32(old)
    while int(factor * np.float32(old)) < new:
        factor = np.nextafter(factor, np.float32(np.inf))
    return np.float32(factor)


def _take_branches(proto: Any) -> None:
    """The branch that is taken, in place of each choice.

    torch writes a choice where it does not know a size, as of an axis that is squeezed. Shapes
    alone decide, which one run on an empty image tells, of a twin whose quantizers do nothing.
    """
    graph = proto.graph
    while conditions := [node.input[0] for node in graph.node if node.op_type == "If"]:
        holds = dict(zip(conditions, _values(_without_quantizers(proto), conditions), strict=True))
        nodes: list[Any] = []
        for node in graph.node:
            nodes += _taken(graph, node, holds) if node.op_type == "If" else [node]
        copies = [_copy(node) for node in nodes]
        del graph.node[:]
        graph.node.extend(copies)


def _taken(graph: Any, node: Any, holds: dict[str, np.ndarray]) -> list[Any]:
    """The nodes of the branch of a choice that is taken."""
    chosen = "then_branch" if bool(holds[node.input[0]]) else "else_branch"
    branch = next(attribute.g for attribute in node.attribute if attribute.name == chosen)
    graph.initializer.extend(branch.initializer)
    names = dict(zip((value.name for value in branch.output), node.output, strict=True))
    for inner in branch.node:
        inner.output[:] = [names.get(name, name) for name in inner.output]
        inner.input[:] = [names.get(name, name) for name in inner.input]
    return list(branch.node)


def _values(proto: Any, names: list[str]) -> list[np.ndarray]:
    """Tensors of a model for an image of zeros."""
    from onnx import TensorProto
    from onnx.helper import make_tensor_value_info

    del proto.graph.output[:]
    outputs = [make_tensor_value_info(name, TensorProto.BOOL, None) for name in set(names)]
    proto.graph.output.extend(outputs)
    session = session_of(proto)
    (image,) = session.get_inputs()
    results = session.run(names, {image.name: np.zeros(image.shape, np.float32)})
    return list(results)


def _copy(message: Any) -> Any:
    twin = type(message)()
    twin.CopyFrom(message)
    return twin


def _without_quantizers(proto: Any) -> Any:
    """A copy in which a quantizer is an identity."""
    twin = _copy(proto)
    for node in twin.graph.node:
        if node.op_type in _QUANTIZERS:
            node.op_type, node.domain = "Identity", ""
            del node.input[1:], node.attribute[:]
    return twin


def _infer_shapes(proto: Any) -> None:
    """Inference of onnx itself."""
    import onnx

    inferred = onnx.shape_inference.infer_shapes(_without_quantizers(proto), strict_mode=True)
    outputs = {value.name for value in proto.graph.output}
    del proto.graph.output[:]
    proto.graph.output.extend(inferred.graph.output)
    del proto.graph.value_info[:]
    proto.graph.value_info.extend(
        value for value in inferred.graph.value_info if value.name not in outputs
    )
    proto.graph.value_info.extend(map(_value_info, proto.graph.initializer))


def _value_info(tensor: Any) -> Any:
    from onnx.helper import make_tensor_value_info

    return make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)


def _own_parameters(graph: Any) -> None:
    """A parameter that several nodes read becomes one for each; one that none reads is dropped."""
    readers = Counter(name for node in graph.node for name in node.input)
    values = {value.name: value for value in graph.value_info}
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        for index, name in enumerate(node.input):
            if name in tensors and readers[name] > 1:
                readers[name] -= 1
                node.input[index] = f"{name}/{readers[name]}"
                for copies, original in (
                    (graph.initializer, tensors[name]),
                    (graph.value_info, values[name]),
                ):
                    twin = copies.add()
                    twin.CopyFrom(original)
                    twin.name = node.input[index]
    produced = {name for node in graph.node for name in (*node.input, *node.output)}
    for items in (graph.initializer, graph.value_info):
        used = [item for item in items if item.name in produced]
        del items[:]
        items.extend(used)


def _name(graph: Any) -> None:
    """Names as qonnx gives them: ``Conv_0``, ``Conv_0_out0``, ``Conv_0_param0``, ``global_in``.

    Several outputs keep the names that they have in what the network returns.
    """
    names = {value.name: value.name for value in graph.output}
    if len(names) == 1:
        names = {graph.output[0].name: "global_out"}
    names[graph.input[0].name] = "global_in"
    constants = {tensor.name for tensor in graph.initializer}
    counts: Counter[str] = Counter()
    for node in graph.node:
        node.name = f"{node.op_type}_{counts[node.op_type]}"
        counts[node.op_type] += 1
        for index, name in enumerate(node.output):
            names.setdefault(name, f"{node.name}_out{index}")
        parameters = [name for name in node.input if name in constants]
        for index, name in enumerate(parameters):
            names[name] = f"{node.name}_param{index}"
    for node in graph.node:
        for fields in (node.input, node.output):
            fields[:] = [names.get(name, name) for name in fields]
    for items in (graph.input, graph.output, graph.value_info, graph.initializer):
        for item in items:
            item.name = names[item.name]
