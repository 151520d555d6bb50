"""An integer network as an ONNX file of standard layers and qonnx's ``MultiThreshold``.

Images come as the hardware reads them, channels last (1, H, W, C), as integers; the result is the
classifier's integers (1, 1, 1, classes). Every tensor is annotated with its integer type.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from brevitas_multiquant.core.grids import signed_bits
from brevitas_multiquant.errors import ExportError
from brevitas_multiquant.export.exporter import IR_VERSION, OPSET_VERSION
from brevitas_multiquant.export.finn.integer_graph import (
    Addition,
    ChannelPick,
    ChannelSlice,
    Concatenation,
    Convolution,
    IntegerGraph,
    Layer,
    MaxPool,
    Padding,
    PositionSum,
    Product,
    Stream,
    Subtraction,
    Thresholds,
    Upsampling,
)

DOMAIN = "qonnx.custom_op.general"
INPUT, OUTPUT = "image_codes", "class_integers"
TO_CHANNELS_LAST, TO_CHANNELS_FIRST = [0, 2, 3, 1], [0, 3, 1, 2]


def to_model(graph: IntegerGraph) -> Any:
    """The ONNX model of an integer network.

    Returns:
        A ``qonnx.core.modelwrapper.ModelWrapper``.
    """
    from onnx import TensorProto, helper

    emitted = _Emitter()
    emitted.node("Transpose", [INPUT], graph.input.name, perm=TO_CHANNELS_FIRST)
    for layer in graph.layers:
        _EMIT[type(layer)](emitted, layer)
    emitted.node("Transpose", [graph.output.name], OUTPUT, perm=TO_CHANNELS_LAST)
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, _channels_last(stream))
        for name, stream in ((INPUT, graph.input), (OUTPUT, graph.output))
    ]
    proto = helper.make_model(
        helper.make_graph(emitted.nodes, f"multiquant_{graph.bits}b", ends[:1], ends[1:]),
        ir_version=IR_VERSION,
        opset_imports=[helper.make_opsetid("", OPSET_VERSION), helper.make_opsetid(DOMAIN, 1)],
    )
    return _annotated(proto, emitted, graph)


class _Emitter:
    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.constants: dict[str, tuple[np.ndarray, str]] = {}

    def node(self, kind: str, inputs: list[str], output: str, **attributes: Any) -> None:
        from onnx import helper

        domain = DOMAIN if kind == "MultiThreshold" else ""
        name = f"{kind}_{output}"
        self.nodes.append(
            helper.make_node(kind, inputs, [output], name=name, domain=domain, **attributes)
        )

    def constant(self, name: str, values: Tensor, datatype: str) -> str:
        array = values.detach().numpy()
        stored = array if datatype == "INT64" else array.astype("float32")
        if (stored != array).any():
            raise ExportError(
                f"{name}: expected integers that fp32 holds, as QONNX stores them, got up to "
                f"{abs(array).max():.0f}; fewer bits or input channels make smaller sums"
            )
        self.constants[name] = (stored, datatype)
        return name


def _annotated(proto: Any, emitted: _Emitter, graph: IntegerGraph) -> Any:
    """With constants, shapes and integer types, written at once and after qonnx took the model.

    It looks through all tensors for those of one, which is minutes for a DenseNet.
    """
    from onnx import TensorProto, helper, numpy_helper
    from qonnx.core.modelwrapper import ModelWrapper

    model = ModelWrapper(proto)
    layout = str(["N", "H", "W", "C"])
    shapes, types = model.graph.value_info, model.graph.quantization_annotation
    for name, (values, datatype) in emitted.constants.items():
        tensor = numpy_helper.from_array(values, name)
        model.graph.initializer.append(tensor)
        shapes.append(helper.make_tensor_value_info(name, tensor.data_type, values.shape))
        types.append(_annotation(name, datatype))
    for one in (graph.input, *(layer.output for layer in graph.layers)):
        shape = [1, *one.shape]
        shapes.append(helper.make_tensor_value_info(one.name, TensorProto.FLOAT, shape))
        types.append(_annotation(one.name, integer_type(one)))
    for name, one in ((INPUT, graph.input), (OUTPUT, graph.output)):
        types.append(_annotation(name, integer_type(one), tensor_layout=layout))
    for layer, node in zip(graph.layers, model.graph.node[1:-1], strict=True):
        node.doc_string = layer.where
    return model


def _annotation(tensor: str, datatype: str, **values: str) -> Any:
    """What qonnx knows of a tensor beside its shape; it has a name of its own for one bit."""
    from onnx import StringStringEntryProto, TensorAnnotation
    from qonnx.core.datatype import DataType

    values = {"finn_datatype": DataType[datatype].name, **values}
    entries = [StringStringEntryProto(key=key, value=value) for key, value in values.items()]
    return TensorAnnotation(tensor_name=tensor, quant_parameter_tensor_names=entries)


def thresholds_of(output: str) -> str:
    """Name of the constant with the thresholds of the layer that gives a stream."""
    return f"{output}_thresholds"


def integer_type(stream: Stream) -> str:
    """The narrowest qonnx integer type that holds a stream.

    Example:
        >>> integer_type(Stream("s", (1, 1, 1), 0, 15)), integer_type(Stream("s", (1, 1, 1), -9, 2))
        ('UINT4', 'INT5')
    """
    return _type_of(stream.lowest, stream.highest)


def _type_of(lowest: int, highest: int) -> str:
    if lowest >= 0:
        return f"UINT{max(highest.bit_length(), 1)}"
    return f"INT{signed_bits(lowest, highest)}"


def _channels_last(stream: Stream) -> list[int]:
    channels, height, width = stream.shape
    return [1, height, width, channels]


def _convolution(emitted: _Emitter, layer: Convolution) -> None:
    name = layer.output.name
    weights = emitted.constant(f"{name}_weights", layer.weight, layer.weight_datatype)
    emitted.node(
        "Conv",
        [layer.inputs[0].name, weights],
        name,
        kernel_shape=list(layer.weight.shape[2:]),
        strides=list(layer.stride),
        pads=[*layer.padding, *layer.padding],
        dilations=list(layer.dilation),
        group=layer.groups,
    )


def _thresholds(emitted: _Emitter, layer: Thresholds) -> None:
    name, (source,) = layer.output.name, layer.inputs
    # any table that may stand here
    lowest, highest = int(layer.table.min()), int(layer.table.max())
    datatype = _type_of(min(source.lowest, lowest), max(source.highest + 1, highest))
    emitted.node(
        "MultiThreshold",
        [source.name, emitted.constant(thresholds_of(name), layer.table, datatype)],
        name,
        out_dtype=f"{'INT' if layer.first_code < 0 else 'UINT'}{layer.bits}",
        out_bias=float(layer.first_code),
        data_layout="NCHW",
    )


def _channel_slice(emitted: _Emitter, layer: ChannelSlice) -> None:
    """A 1x1 convolution that picks channels: FINN's split leaves the others with no reader."""
    picks = torch.eye(layer.output.shape[0], layer.inputs[0].shape[0])[:, :, None, None]
    _convolution(emitted, Convolution(layer.where, layer.inputs, layer.output, picks, 2))


def _channel_pick(emitted: _Emitter, layer: ChannelPick) -> None:
    """A convolution of zeros and ones."""
    product = Convolution(layer.where, layer.inputs, layer.output, layer.weight, 2, layer.stride)
    _convolution(emitted, product)


def _of_streams(kind: str, **attributes: Any) -> Callable[[_Emitter, Layer], None]:
    """A standard operation of the streams alone."""

    def emit(emitted: _Emitter, layer: Layer) -> None:
        names = [stream.name for stream in layer.inputs]
        emitted.node(kind, names, layer.output.name, **attributes)

    return emit


def _padding(emitted: _Emitter, layer: Padding) -> None:
    name = layer.output.name
    pads = torch.tensor([0, 0, *layer.before, 0, 0, *layer.after])
    sizes = emitted.constant(f"{name}_pads", pads, "INT64")
    emitted.node("Pad", [layer.inputs[0].name, sizes], name)


def _upsampling(emitted: _Emitter, layer: Upsampling) -> None:
    name = layer.output.name
    factors = torch.tensor([1.0, 1.0, *layer.factors])
    scales = emitted.constant(f"{name}_factors", factors, "UINT8")
    emitted.node(
        *("Resize", [layer.inputs[0].name, "", scales], name),
        mode="nearest",
        coordinate_transformation_mode="asymmetric",
        nearest_mode="floor",
    )


def _max_pool(emitted: _Emitter, layer: MaxPool) -> None:
    emitted.node(
        "MaxPool",
        [layer.inputs[0].name],
        layer.output.name,
        kernel_shape=list(layer.kernel),
        strides=list(layer.stride),
        pads=[*layer.padding, *layer.padding],
    )


def _position_sum(emitted: _Emitter, layer: PositionSum) -> None:
    axes = emitted.constant(f"{layer.output.name}_axes", torch.tensor([2, 3]), "INT64")
    emitted.node("ReduceSum", [layer.inputs[0].name, axes], layer.output.name, keepdims=1)


_EMIT: dict[type[Layer], Callable[[_Emitter, Any], None]] = {
    Convolution: _convolution,
    Thresholds: _thresholds,
    ChannelSlice: _channel_slice,
    ChannelPick: _channel_pick,
    Concatenation: _of_streams("Concat", axis=1),
    Addition: _of_streams("Add"),
    Subtraction: _of_streams("Sub"),
    Product: _of_streams("Mul"),
    Padding: _padding,
    Upsampling: _upsampling,
    MaxPool: _max_pool,
    PositionSum: _position_sum,
}
