"""QCDQ files give torch's logits: what is off is named, and the finn profile is exact."""

import copy

import numpy as np
import onnxruntime
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from brevitas_multiquant import calibrate, extract_subnet, multiquantize
from brevitas_multiquant.errors import ExportError
from brevitas_multiquant.export import export_onnx
from brevitas_multiquant.export.onnx.qcdq import check_logits, to_onnx, verify_onnx
from brevitas_multiquant.export.qonnx.files import to_qonnx, verify_qonnx
from brevitas_multiquant.export.sample import smooth_images
from tests.export.nets import build

SHAPE = (1, 3, 16, 16)


def edge_cnn() -> nn.Module:
    """One class far ahead, as after training: the class alone tells nothing."""
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 10),
    )
    with torch.no_grad():
        model[-1].bias[3] = 5.0
    return model


@pytest.fixture(scope="module")
def finn_net():
    torch.manual_seed(0)
    net = multiquantize(edge_cnn(), [2, 3, 4, 8], input_shape=SHAPE, profile="finn")
    calibrate(net, [torch.randn(16, *SHAPE[1:])])
    return net.eval()


@pytest.fixture(scope="module")
def paper_net():
    torch.manual_seed(0)
    net = multiquantize(edge_cnn(), [4], input_shape=SHAPE)
    calibrate(net, [torch.randn(16, *SHAPE[1:])])
    return net.eval()


def test_a_finn_network_is_exact_in_onnxruntime(finn_net, tmp_path):
    """Also where values lie on a tie: the image's grid is a power of two, and so are its halves."""
    images = torch.randn(16, *SHAPE[1:])
    images = torch.cat([images, (images * 64).round() / 64])
    for bits, path in export_onnx(finn_net, tmp_path, images=images).items():
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        actual = [session.run(None, {"input": image[None].numpy()})[0] for image in images]
        with torch.no_grad(), finn_net.at_bits(bits):
            assert np.array_equal(np.concatenate(actual), finn_net(images).numpy())


def test_a_quantizer_that_rounds_to_even_instead_is_found(finn_net, monkeypatch, tmp_path):
    """What a floor written as QuantizeLinear does: named, though the class is right."""
    monkeypatch.setattr("brevitas_multiquant.export.onnx.qcdq._Floor", nn.Identity)
    with pytest.raises(ExportError, match=r"2 bits: expected identical codes after stem\.image_q"):
        export_onnx(finn_net, tmp_path / "out", bits=[2])
    assert list(tmp_path.iterdir()) == []


def changed(model, name: str, change):
    """A copy of a model with one parameter changed: the first whose node's name starts so."""
    model = copy.deepcopy(model)
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    constants = {n.output[0]: n.attribute[0] for n in model.graph.node if n.op_type == "Constant"}
    node = next(n for n in model.graph.node if n.name.startswith(name))
    for read in node.input[::-1]:
        if read in tensors:
            value = change(numpy_helper.to_array(tensors[read])).astype(np.float32)
            tensors[read].CopyFrom(numpy_helper.from_array(value, read))
            return model
        if read in constants:
            value = change(numpy_helper.to_array(constants[read].t)).astype(np.float32)
            constants[read].t.CopyFrom(numpy_helper.from_array(value))
            return model
    raise AssertionError(f"{name} reads no parameter")


FAULTS = [
    pytest.param(
        "/merge/Div", lambda v: v * 1.02, "expected the merge of the branches", id="merge"
    ),
    pytest.param("/stem/stem.0/Conv", lambda v: -v, "expected the stem's output", id="stem"),
    pytest.param(
        "/branches.0/input_quants.3/input_quants.3.0/Mul",
        lambda v: v * 1.02,
        r"identical codes after branches\.0\.input_quants",
        id="range",
    ),
    pytest.param(
        "/branches.1/branches.1.4/Mul", lambda v: -v, "expected the merge", id="sign of a norm"
    ),
    pytest.param("/head/head.8/Gemm", lambda v: v * 1.02, "expected logits within", id="head"),
]


@pytest.mark.parametrize(("node", "change", "message"), FAULTS)
def test_a_wrong_merge_scale_or_sign_is_named_though_the_class_is_right(
    paper_net, node, change, message
):
    subnet = extract_subnet(paper_net, 4)
    images = smooth_images((4, *SHAPE[1:]))
    model = to_onnx(subnet, images[:1])
    verify_onnx(model, subnet, images)
    with pytest.raises(ExportError, match=message):
        verify_onnx(changed(model, node, change), subnet, images)


def test_a_wrong_merge_is_named_in_qonnx_too():
    subnet, images = extract_subnet(build("plain"), 8), smooth_images((1, 3, 16, 16))
    model = to_qonnx(subnet, images)
    verify_qonnx(model, subnet, images)
    merge = next(node for node in model.graph.node if node.doc_string == "merge")
    assert merge.op_type == "Div"
    with pytest.raises(ExportError, match="8 bits: expected the merge of the branches within"):
        verify_qonnx(changed(model, merge.name, lambda v: v * 1.01), subnet, images)


def test_small_logits_and_small_stems_are_compared_relatively():
    """A difference of a hundredth of a small logit is a hundredth, not nothing."""
    torch.manual_seed(0)
    model = edge_cnn()
    with torch.no_grad():
        model[-1].weight.mul_(1e-4), model[-1].bias.mul_(1e-4)
    net = multiquantize(model, [2], input_shape=SHAPE)
    calibrate(net, [torch.randn(16, *SHAPE[1:])])
    subnet, images = extract_subnet(net, 2), smooth_images(SHAPE)
    exported = to_onnx(subnet, images)
    verify_onnx(exported, subnet, images)
    with pytest.raises(ExportError, match="expected logits within"):
        verify_onnx(changed(exported, "/head/head.8/Gemm", lambda v: v * 1.01), subnet, images)


def test_the_file_as_it_runs_is_compared_beside_the_copy_that_gives_its_codes():
    expected = torch.tensor([[1.0, 5.0], [2.0, 4.0], [-10.0, 0.0]])
    check_logits("here", expected * 1.0009, expected)
    with pytest.raises(ExportError, match="got other ones for 1 of 3 images"):
        check_logits("here", expected + torch.tensor([[0.0], [0.01], [0.0]]), expected)
    with pytest.raises(ExportError, match="got other ones for 3 of 3"):
        check_logits("here", expected * float("nan"), expected)
    near = torch.tensor([[1.0, 1.0005]])
    with pytest.raises(ExportError, match="expected the class that torch gives"):
        check_logits("here", near.flip(-1), near)


def test_it_is_compared_on_eight_images_and_on_those_that_are_given(monkeypatch, tmp_path):
    seen = []
    original = verify_onnx

    def counted(model, subnet, images):
        seen.append(images)
        original(model, subnet, images)

    monkeypatch.setattr("brevitas_multiquant.export.onnx.files.verify_onnx", counted)
    mine = torch.randn(3, *SHAPE[1:], dtype=torch.float64)
    net = build("plain")
    export_onnx(net, tmp_path, bits=[2], images=mine)
    export_onnx(net, tmp_path, bits=[2], input_shape=(5, 3, 16, 16), images=mine[:1])
    assert [len(images) for images in seen] == [11, 9]
    assert torch.equal(seen[0][:8], smooth_images((8, 3, 16, 16)))
    assert torch.equal(seen[0][8:], mine.float())


@pytest.mark.parametrize(
    "images", [torch.zeros(3, 16, 16), torch.zeros(0, 3, 16, 16), torch.zeros(2, 3, 8, 8), [1, 2]]
)
def test_images_of_another_kind_are_refused(images, tmp_path):
    with pytest.raises(ExportError, match="expected images"):
        export_onnx(build("plain"), tmp_path / "out", images=images)
    assert list(tmp_path.iterdir()) == []
