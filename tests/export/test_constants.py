"""Folding of constants: what qonnx folds, at once instead of a node at a time."""

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper, shape_inference
from torch import nn

from brevitas_multiquant.export.exporter import readable_ir_version
from brevitas_multiquant.export.qonnx.cleanup import clean_up
from brevitas_multiquant.export.qonnx.constants import fold_constants
from brevitas_multiquant.export.qonnx.execute import execute
from brevitas_multiquant.export.qonnx.files import _exported


def model_of(nodes, kind=TensorProto.FLOAT, **constants):
    """A model of nodes on an image ``x`` (1, 3, 4, 4)."""
    values = [numpy_helper.from_array(np.asarray(v), n) for n, v in constants.items()]
    image = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 4, 4])
    given = [helper.make_tensor_value_info("y", kind, None)]
    graph = helper.make_graph(nodes, "model", [image], given, values)
    opsets = [helper.make_opsetid("", 13)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    infer(model)
    return model


def infer(model):
    infer.calls += 1
    values = shape_inference.infer_shapes(model).graph.value_info
    del model.graph.value_info[:]
    model.graph.value_info.extend(values)


@pytest.fixture(autouse=True)
def _count():
    infer.calls = 0


def constants_of(model):
    return {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}


def test_a_chain_of_constants_is_folded_at_once():
    steps = [helper.make_node("Add", [f"c{i}", "one"], [f"c{i + 1}"]) for i in range(50)]
    model = model_of([*steps, helper.make_node("Mul", ["x", "c50"], ["y"])], c0=0.0, one=1.0)
    infer.calls = 0
    fold_constants(model, infer)
    assert infer.calls == 1
    assert [node.op_type for node in model.graph.node] == ["Mul"]
    assert constants_of(model)["c50"] == 50


def test_a_shape_that_is_known_is_a_constant_and_so_is_what_is_computed_of_it():
    model = model_of(
        [
            helper.make_node("Shape", ["x"], ["shape"]),
            helper.make_node("Gather", ["shape", "where"], ["rows"]),
            helper.make_node("Concat", ["minus", "rows"], ["target"], axis=0),
            helper.make_node("Reshape", ["x", "target"], ["flat"]),
            helper.make_node("Shape", ["flat"], ["y"]),
        ],
        kind=TensorProto.INT64,
        where=np.array([2]),
        minus=np.array([-1]),
    )
    fold_constants(model, infer)
    assert [node.op_type for node in model.graph.node] == ["Reshape"]  # of the image
    np.testing.assert_array_equal(constants_of(model)["y"], [12, 4])


def test_nodes_that_read_the_image_and_quantizers_stay():
    quant = helper.make_node("Quant", ["weight"], ["codes"], domain="qonnx.custom_op.general")
    nodes = [quant, helper.make_node("Add", ["x", "codes"], ["y"])]
    graph = helper.make_graph(nodes, "model", [], [])
    model = helper.make_model(graph)
    model.graph.initializer.append(numpy_helper.from_array(np.ones(3, np.float32), "weight"))
    fold_constants(model, infer)
    assert [node.op_type for node in model.graph.node] == ["Quant", "Add"] and infer.calls == 0


class Reshaped(nn.Module):
    """Sizes that are computed from those of the image."""

    def forward(self, x):
        batch, channels, height, width = x.shape
        x = x.view(batch * channels // 3, 3, height // 2, 2 * width)
        return x.permute(0, 2, 3, 1).reshape(batch, -1) * torch.arange(2.0).sum()


def test_the_result_is_that_of_qonnx():
    from qonnx.core.modelwrapper import ModelWrapper
    from qonnx.core.onnx_exec import execute_onnx
    from qonnx.util.cleanup import cleanup_model

    images = torch.randn(2, 3, 4, 6)
    with readable_ir_version():
        ours = clean_up(_exported(Reshaped(), images))
        theirs = cleanup_model(ModelWrapper(_exported(Reshaped(), images)))
        found = execute(ours, images.numpy(), ["global_out"])["global_out"]
        expected = execute_onnx(theirs, {"global_in": images.numpy()})["global_out"]
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(found, Reshaped()(images).numpy())
    kinds = [[node.op_type for node in model.graph.node] for model in (ours, theirs)]
    assert sorted(kinds[0]) == sorted(kinds[1])
