"""Build steps that FINN does not have, for ``steps`` of ``dataflow_build_config.json``.

The model comes with integer weights and integer thresholds, so that there is nothing to streamline:
what is left is to write it in the layers and in the layout of the hardware.
"""

import json
from pathlib import Path
from typing import Any

from onnx import helper
from qonnx.core.datatype import DataType
from qonnx.core.modelwrapper import ModelWrapper
from qonnx.custom_op.registry import getCustomOp
from qonnx.transformation.general import GiveUniqueNodeNames
from qonnx.transformation.infer_data_layouts import InferDataLayouts
from qonnx.transformation.infer_datatypes import InferDataTypes
from qonnx.transformation.infer_shapes import InferShapes
from qonnx.transformation.lower_convs_to_matmul import LowerConvsToMatMul

GENERAL = "qonnx.custom_op.general"
HARDWARE = "finn.custom_op.fpgadataflow"


def step_multiquant_channels_last(model: ModelWrapper, cfg: Any) -> ModelWrapper:
    """Convolutions as matrix products, every tensor (1, H, W, C), no transposition left.

    With all tensors channels last at once, the transpositions around convolutions, and those at
    input and output, have nothing to do and go.
    """
    model = model.transform(LowerConvsToMatMul())
    channels_last = {
        tensor
        for node in model.graph.node
        if node.op_type in ("Im2Col", "MatMul")
        for tensor in node.output
    } | {model.graph.input[0].name, model.graph.output[0].name}
    for node in list(model.graph.node):
        if node.op_type == "Transpose":
            _bypass(model, node)
    _permute_shapes(model, channels_last)
    for node in list(model.graph.node):
        rewrite = _CHANNELS_LAST.get(node.op_type)
        if rewrite is not None:
            rewrite(model, node)
    _fold_upsampling(model, cfg)
    model = model.transform(GiveUniqueNodeNames())
    for transformation in (InferShapes(), InferDataTypes(), InferDataLayouts()):
        model = model.transform(transformation)
    return model


def step_multiquant_runtime_thresholds(model: ModelWrapper, cfg: Any) -> ModelWrapper:
    """Threshold tables that can be written while the accelerator runs."""
    for node in model.get_nodes_by_op_type("Thresholding"):
        getCustomOp(node).set_nodeattr("runtime_writeable_weights", 1)
    return model


def step_multiquant_memory(model: ModelWrapper, cfg: Any) -> ModelWrapper:
    """Memories of tables, weights and lines as ``memory_config.json`` has them.

    Layers are found by the stream that they make, whose name is in the constants that they hold; a
    window by who reads it.
    """
    wanted = json.loads((Path(__file__).parent / "memory_config.json").read_text())
    for node in model.graph.node:
        kind = node.op_type.rpartition("_")[0]
        attributes = wanted.get(_stream_of(model, node), {}).pop(kind, {})
        for name, value in attributes.items():
            getCustomOp(node).set_nodeattr(name, value)
    if left := {stream: kinds for stream, kinds in wanted.items() if kinds}:
        raise RuntimeError(f"memory_config.json: expected layers of the model, found none: {left}")
    return model


def _stream_of(model: ModelWrapper, node: Any) -> str:
    """The stream of the exported model that a layer of hardware makes, or helps to make."""
    if node.op_type.startswith("ConvolutionInputGenerator"):
        (node,) = model.find_direct_successors(node)
    for suffix in ("_thresholds", "_weights"):
        if len(node.input) > 1 and node.input[1].endswith(suffix):
            return str(node.input[1].removesuffix(suffix))
    return str(node.output[0])


def step_multiquant_weight_types(model: ModelWrapper, cfg: Any) -> ModelWrapper:
    """Two bits for weights that FINN has narrowed to one.

    It looks at the largest or smallest weight alone, so that 0 and 1, which pick the channels of a
    half branch, become ``BINARY``: a type that its code generation refuses.
    """
    for node in model.graph.node:
        if node.op_type.startswith(("MVAU", "VVAU")):
            layer = getCustomOp(node)
            if layer.get_input_datatype(1).bitwidth() == 1:
                layer.set_nodeattr("weightDataType", "INT2")
                model.set_tensor_datatype(node.input[1], DataType["INT2"])
    return model


def _bypass(model: ModelWrapper, node: Any) -> None:
    source, target = node.input[0], node.output[0]
    if target == model.graph.output[0].name:
        producer = model.find_producer(source)
        producer.output[0] = target
        source, target = target, source
    for reader in model.graph.node:
        for index, name in enumerate(reader.input):
            if name == target and reader is not node:
                reader.input[index] = source
    model.graph.node.remove(node)


def _permute_shapes(model: ModelWrapper, channels_last: set[str]) -> None:
    alive = {name for node in model.graph.node for name in (*node.input, *node.output)}
    for value in list(model.graph.value_info):
        if value.name not in alive:
            model.graph.value_info.remove(value)
        elif model.get_initializer(value.name) is None and value.name not in channels_last:
            batch, channels, height, width = model.get_tensor_shape(value.name)
            model.set_tensor_shape(value.name, [batch, height, width, channels])


def _thresholds(model: ModelWrapper, node: Any) -> None:
    for attribute in node.attribute:
        if attribute.name == "data_layout":
            attribute.s = b"NHWC"


def _max_pool(model: ModelWrapper, node: Any) -> None:
    node.op_type, node.domain = "MaxPoolNHWC", GENERAL


def _position_sum(model: ModelWrapper, node: Any) -> None:
    *positions, channels = model.get_tensor_shape(node.input[0])
    _replace(
        *(model, node, "GlobalAccPool"),
        NumChannels=channels,
        PE=1,
        inputDataType=model.get_tensor_datatype(node.input[0]).name,
        numInputVectors=positions,
    )


def _concatenation(model: ModelWrapper, node: Any) -> None:
    for attribute in node.attribute:
        if attribute.name == "axis":
            attribute.i = 3


def _padding(model: ModelWrapper, node: Any) -> None:
    _, _, top, left, _, _, bottom, right = model.get_initializer(node.input[1])
    _, height, width, channels = model.get_tensor_shape(node.input[0])
    _replace(
        *(model, node, "FMPadding"),
        ImgDim=[height, width],
        Padding=[int(top), int(left), int(bottom), int(right)],
        NumChannels=channels,
        SIMD=1,
        inputDataType=model.get_tensor_datatype(node.input[0]).name,
    )


def _upsampling(model: ModelWrapper, node: Any) -> None:
    _, height, width, channels = model.get_tensor_shape(node.input[0])
    _, rows, columns, _ = model.get_tensor_shape(node.output[0])
    _replace(
        *(model, node, "UpsampleNearestNeighbour"),
        HI=height,
        WI=width,
        HO=rows,
        WO=columns,
        NumChannels=channels,
        SIMD=1,
        inputDataType=model.get_tensor_datatype(node.input[0]).name,
        batchSize=1,
        cpp_interface="hls_vector",
        hls_style="freerunning",
    )


def _fold_upsampling(model: ModelWrapper, cfg: Any) -> None:
    """Channels at once for the frame rate: a layer that FINN does not fold."""
    if cfg.target_fps is None:
        return
    cycles = 1e9 / cfg.synth_clk_period_ns / cfg.target_fps
    for node in model.get_nodes_by_op_type("UpsampleNearestNeighbour"):
        layer = getCustomOp(node)
        _, rows, columns, channels = layer.get_normal_output_shape()
        divisors = (simd for simd in range(1, channels + 1) if channels % simd == 0)
        meets = (simd for simd in divisors if channels // simd * rows * columns <= cycles)
        layer.set_nodeattr("SIMD", next(meets, channels))


def _replace(model: ModelWrapper, node: Any, kind: str, **attributes: Any) -> None:
    """A layer of hardware of the same tensor in the node's place."""
    layer = helper.make_node(
        kind,
        [node.input[0]],
        list(node.output),
        domain=HARDWARE,
        backend="fpgadataflow",
        name=f"{kind}_{node.name}",
        doc_string=node.doc_string,
        **attributes,
    )
    index = next(i for i, other in enumerate(model.graph.node) if other is node or other == node)
    model.graph.node.insert(index, layer)
    model.graph.node.remove(node)


_CHANNELS_LAST = {
    "MultiThreshold": _thresholds,
    "MaxPool": _max_pool,
    "ReduceSum": _position_sum,
    "Concat": _concatenation,
    "Pad": _padding,
    "Resize": _upsampling,
}
