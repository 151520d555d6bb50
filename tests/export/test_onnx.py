"""Plain ONNX files give the class that torch gives, or there are none."""

import numpy as np
import onnxruntime
import pytest
import torch

from brevitas_multiquant.errors import ExportError
from brevitas_multiquant.export import export_onnx
from brevitas_multiquant.export.sample import smooth_images
from tests.export.nets import build


@pytest.mark.parametrize(("name", "size"), [("plain", 16), ("resnet", 32)])
def test_onnxruntime_gives_the_class_of_torch(name, size, tmp_path):
    net = build(name, "sum", (2, 8))
    files = export_onnx(net, tmp_path, input_shape=(2, 3, size, size))
    assert files == {bit: tmp_path / f"model_{bit}b_qcdq.onnx" for bit in (2, 8)}
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in files.values()}
    images = smooth_images((2, 3, size, size))
    for bit, path in files.items():
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        assert [value.name for value in session.get_inputs()] == ["input"]
        (logits,) = session.run(None, {"input": images.numpy()})
        with torch.no_grad(), net.at_bits(bit):
            expected = net(images).numpy()
        np.testing.assert_array_equal(logits.argmax(-1), expected.argmax(-1))


def test_another_class_is_an_error_and_leaves_no_file(tmp_path, monkeypatch):
    from brevitas_multiquant.export.onnx import qcdq as module

    def tampered(where, actual, logits):
        check(where, -actual, logits)

    check = module.check_classes
    monkeypatch.setattr(module, "check_classes", tampered)
    with pytest.raises(ExportError, match="2 bits: expected the class that torch gives"):
        export_onnx(build("plain"), tmp_path / "out", bits=[2])
    assert list(tmp_path.iterdir()) == []


def test_more_than_8_bits_are_refused(tmp_path):
    net = build("plain", "mean", (2, 10))
    with pytest.raises(ExportError, match="at most 8 bits"):
        export_onnx(net, tmp_path)
    assert list(tmp_path.iterdir()) == []
