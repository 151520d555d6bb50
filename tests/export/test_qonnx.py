"""QONNX files are what torch computes, or there are none."""

import dataclasses
import hashlib
import json
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from brevitas.nn import QuantConv2d, QuantIdentity, QuantLinear
from onnx import numpy_helper

from brevitas_multiquant import extract_subnet
from brevitas_multiquant.errors import BitWidthError, ExportError
from brevitas_multiquant.export import export_qonnx
from brevitas_multiquant.export import verify as verify_module
from brevitas_multiquant.export.exporter import readable_ir_version
from brevitas_multiquant.export.qonnx.execute import execute
from brevitas_multiquant.export.qonnx.files import _check_sample, to_qonnx, verify_qonnx
from brevitas_multiquant.export.sample import impulse_images, smooth_images
from brevitas_multiquant.export.verify import TIE_TOLERANCE, tie_tolerance
from tests.export.nets import build

BITS = (2, 4, 6, 8)


def count(module: torch.nn.Module, *types: type) -> int:
    return sum(isinstance(part, types) for part in module.modules())


def snapshot(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> tuple[Path, dict[int, Path]]:
    folder = tmp_path_factory.mktemp("qonnx") / "new" / "out"
    return folder, export_qonnx(build("plain"), folder)


def test_writes_one_file_a_bit_width_sample_outputs_and_report(exported):
    folder, files = exported
    assert files == {bit: folder / f"model_{bit}b.onnx" for bit in BITS}
    expected = {"input.npy", "export.json"}
    expected |= {
        name.format(b) for b in BITS for name in ("model_{}b.onnx", "expected_output_{}b.npy")
    }
    assert {path.name for path in folder.iterdir()} == expected


def test_report_says_what_was_compared(exported):
    folder, files = exported
    report = json.loads((folder / "export.json").read_text())
    assert report["version"] == 1
    assert report["input_shape"] == [1, 3, 16, 16]
    for bit, path in files.items():
        entry = report["bits"][str(bit)]
        assert entry["file"] == path.name
        assert entry["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
        subnet = extract_subnet(build("plain"), bit)
        for compared in entry["compared"].values():
            assert compared["quantizers"] == count(subnet, QuantIdentity)
            assert compared["flipped_codes"] == 0
            assert compared["logit_difference"] <= 1e-5
        assert entry["compared"]["sample"]["end_to_end_flipped_codes"] == 0


@pytest.mark.parametrize("bit", BITS)
def test_graph_has_odd_3_bit_weights_and_activations_of_the_bit_width(exported, bit):
    graph = onnx.load(exported[1][bit]).graph
    constants = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
    quantizers = [node for node in graph.node if node.op_type == "Quant"]
    weights = [node for node in quantizers if node.input[0] in constants]
    activations = [node for node in quantizers if node.input[0] not in constants]
    subnet = extract_subnet(build("plain"), bit)
    assert len(weights) == count(subnet, QuantConv2d, QuantLinear)
    assert len(activations) == count(subnet, QuantIdentity)
    assert {node.domain for node in quantizers} == {"qonnx.custom_op.general"}
    for node in weights:
        assert set(np.unique(constants[node.input[0]])) <= {-3.0, -1.0, 1.0, 3.0}
        assert [constants[name].item() for name in node.input[1:]] == [1.0, 0.0, 3.0]
    for node in activations:
        assert [constants[name].item() for name in node.input[1:]] == [1.0, 0.0, float(bit)]
        attributes = {attribute.name: attribute.i for attribute in node.attribute}
        assert (attributes["signed"], attributes["narrow"]) == (0, 0)


def test_file_version_shapes_and_names_are_known(exported):
    model = onnx.load(exported[1][4])
    assert model.ir_version == 10
    assert [value.name for value in model.graph.input] == ["global_in"]
    assert [value.name for value in model.graph.output] == ["global_out"]
    shaped = {v.name for v in (*model.graph.value_info, *model.graph.output)}
    assert {name for node in model.graph.node for name in node.output} <= shaped
    names = [node.name for node in model.graph.node]
    assert len(set(names)) == len(names)


def test_the_qonnx_command_reproduces_the_expected_output(exported, tmp_path, monkeypatch):
    from qonnx.util.exec_qonnx import exec_qonnx

    folder, files = exported
    monkeypatch.chdir(tmp_path)
    with readable_ir_version():
        exec_qonnx(str(files[8]), str(folder / "input.npy"))
    actual = np.load(tmp_path / "out_global_out_batch0.npy")
    np.testing.assert_allclose(actual, np.load(folder / "expected_output_8b.npy"), atol=1e-5)


def test_linear_execution_and_clean_up_agree_with_those_of_qonnx():
    from qonnx.core.modelwrapper import ModelWrapper
    from qonnx.core.onnx_exec import execute_onnx
    from qonnx.util.cleanup import cleanup_model

    images = smooth_images((2, 3, 16, 16))
    model = to_qonnx(extract_subnet(build("plain"), 4), images)
    names = {name for node in model.graph.node for name in node.output}
    with readable_ir_version():
        ours = execute(model, images.numpy(), names)
        theirs = execute_onnx(ModelWrapper(model), {"global_in": images.numpy()}, True)
        cleaned = cleanup_model(ModelWrapper(model))
        again = execute_onnx(cleaned, {"global_in": images.numpy()})
    for name in names:
        np.testing.assert_array_equal(ours[name], theirs[name])
    np.testing.assert_array_equal(again["global_out"], ours["global_out"])
    counts = [sorted(n.op_type for n in m.graph.node) for m in (model, cleaned)]
    assert counts[0] == counts[1]
    assert len(model.graph.value_info) == len(cleaned.graph.value_info)
    assert len(model.graph.initializer) == len(cleaned.graph.initializer)


@pytest.mark.parametrize(
    ("name", "merge", "bits"),
    [("resnet", "sum", (2, 8)), ("mobilenet", "mean", (2,)), ("resized", "mean", (2,))],
)
def test_real_networks_and_both_merges_are_verified(name, merge, bits, tmp_path):
    net = build(name, merge, bits)
    files = export_qonnx(net, tmp_path, input_shape=(2, 3, 32, 32))
    report = json.loads((tmp_path / "export.json").read_text())
    assert tuple(files) == bits
    for entry in report["bits"].values():
        assert entry["compared"]["sample"]["end_to_end_flipped_codes"] == 0
        assert entry["compared"]["smooth"]["flipped_codes"] == 0


def test_network_is_not_changed(tmp_path):
    net = build("plain")
    images = smooth_images((2, 3, 16, 16))
    with torch.no_grad():
        before, active = net(images), net.active_bits
        export_qonnx(net, tmp_path, bits=[2])
        assert torch.equal(net(images), before)
    assert net.active_bits == active


def flip_a_code(monkeypatch, bits: int) -> None:
    """Make the comparison at ``bits`` see one code of the first quantizer flipped."""
    original = verify_module.verify

    def tampered(graph, subnet, images, allow_ties=False):
        def run(array):
            tensors = graph.run(array)
            if subnet.bits == bits:
                first = next(iter(graph.codes.values()))
                tensors[first] = tensors[first].copy()
                code = tensors[first].reshape(-1)
                code[0] = code[0] + 1 if code[0] < 2 else code[0] - 2
            return tensors

        return original(dataclasses.replace(graph, run=run), subnet, images, allow_ties)

    monkeypatch.setattr("brevitas_multiquant.export.qonnx.files.verify", tampered)


def test_a_flipped_code_is_an_error_and_leaves_no_file(tmp_path, monkeypatch):
    flip_a_code(monkeypatch, bits=4)
    message = r"4 bits: .*after branches\.\d\.input_quants\S+ \(tensor Quant_\d+_out0\), got 1 of"
    with pytest.raises(ExportError, match=message):
        export_qonnx(build("plain"), tmp_path / "new" / "out", bits=[2, 4])
    assert list(tmp_path.iterdir()) == []


def test_a_failure_leaves_an_earlier_export_as_it_was(tmp_path, monkeypatch):
    export_qonnx(build("plain"), tmp_path, bits=[2])
    (tmp_path / "notes.txt").write_text("mine")
    before = snapshot(tmp_path)
    flip_a_code(monkeypatch, bits=4)
    with pytest.raises(ExportError, match="no file was written"):
        export_qonnx(build("plain"), tmp_path, bits=[2, 4])
    assert snapshot(tmp_path) == before


def changed_parameter(model, op_type: str, change) -> None:
    node = next(n for n in model.graph.node if n.op_type == op_type)
    tensor = next(t for t in model.graph.initializer if t.name in node.input)
    tensor.CopyFrom(numpy_helper.from_array(change(numpy_helper.to_array(tensor)), tensor.name))


@pytest.mark.parametrize(
    ("op_type", "factor", "message"),
    [("Conv", 1.001, "stem's output"), ("Gemm", 1.001, "expected logits within")],
)
def test_a_wrong_float_parameter_is_found(op_type, factor, message):
    images = smooth_images((1, 3, 16, 16))
    subnet = extract_subnet(build("plain"), 4)
    model = to_qonnx(subnet, images)
    changed_parameter(model, op_type, lambda value: (value * factor).astype(np.float32))
    with pytest.raises(ExportError, match=message):
        verify_qonnx(model, subnet, images)


def test_a_wrong_shift_before_a_quantizer_is_found_even_where_ties_are_allowed():
    images = smooth_images((1, 3, 16, 16))
    subnet = extract_subnet(build("plain"), 8)
    model = to_qonnx(subnet, images)
    changed_parameter(model, "Sub", lambda value: value + np.float32(0.01))
    with pytest.raises(ExportError, match="does not export"):
        verify_qonnx(model, subnet, images, allow_ties=True)


@pytest.mark.parametrize("bits", [9, 12, 16])
def test_above_8_bits_the_same_share_of_the_range_decides(bits):
    """Finer codes: what fp32 rounds is the same share of the range, more of a code."""
    share = tie_tolerance(8) / 2**8
    assert tie_tolerance(bits) / 2**bits == share
    middle = 1.5
    values = torch.tensor([middle - 0.9 * tie_tolerance(bits), middle - 1.1 * tie_tolerance(bits)])
    forced = verify_module._Forced({"q": torch.tensor([2.0, 2.0])}, tie_tolerance(bits))
    forced("q", values, torch.tensor([1.0, 1.0]), 0.5)
    assert (forced.flips, forced.ties) == ({"q": 2}, {"q": 1})


def test_every_bit_width_up_to_16_exports(tmp_path):
    """Equality to the bit is promised up to 8; ties that fp32 decides are counted above."""
    export_qonnx(build("plain", bits=(3, 7, 11, 16)), tmp_path)
    report = json.loads((tmp_path / "export.json").read_text())["bits"]
    assert list(report) == ["3", "7", "11", "16"]
    for bits in ("3", "7"):
        assert report[bits]["compared"]["smooth"]["flipped_codes"] == 0


def test_another_class_for_the_sample_is_an_error():
    same = verify_module.Comparison(1, 8, 0, 0.0, 0.0, 2, 0.1, 0)
    _check_sample(same, 4)
    with pytest.raises(ExportError, match="4 bits: expected the class that torch gives"):
        _check_sample(dataclasses.replace(same, end_to_end_other_classes=1), 4)


def test_only_codes_next_to_a_threshold_count_as_ties():
    values, codes = torch.tensor([1.4999, 1.4, 2.0]), torch.tensor([1.0, 1.0, 2.0])
    forced = verify_module._Forced({"q": torch.tensor([2.0, 2.0, 2.0])}, TIE_TOLERANCE)
    assert torch.equal(forced("q", values, codes, 0.5), torch.tensor([2.0, 2.0, 2.0]))
    assert (forced.flips, forced.ties) == ({"q": 2}, {"q": 1})


def test_each_window_of_an_impulse_image_has_at_most_one_impulse():
    images = impulse_images((2, 3, 32, 20), 5)
    windows = torch.nn.functional.unfold((images != 0).float(), 5, padding=4)
    assert windows.sum(1).max() == 1
    assert set(images.abs().unique().tolist()) == {0.0, 0.5, 1.0, 2.0, 4.0}


@pytest.mark.parametrize("bits", [[], [3], [2, 16], [True]])
def test_bits_that_are_no_candidates_are_refused(bits, tmp_path):
    with pytest.raises(BitWidthError, match=r"expected bits out of \[2, 4, 6, 8\]"):
        export_qonnx(build("plain"), tmp_path, bits=bits)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("shape", [(3, 16, 16), (1, 3, 0, 16), (1, 3, 16.0, 16), 16, "16"])
def test_a_wrong_input_shape_is_refused(shape, tmp_path):
    with pytest.raises(ExportError, match="four positive integers"):
        export_qonnx(build("plain"), tmp_path, input_shape=shape)


def test_a_wrong_number_of_channels_is_refused(tmp_path):
    with pytest.raises(ExportError, match="with 3 channels"):
        export_qonnx(build("plain"), tmp_path, input_shape=(1, 1, 16, 16))


def test_a_folder_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "out"):
        with pytest.raises(ExportError, match="folder that can be written"):
            export_qonnx(build("plain"), folder, bits=[2])
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_missing_package_is_named_with_the_extra_that_has_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "qonnx", None)
    with pytest.raises(ExportError, match=r'qonnx.*pip install "brevitas-multiquant\[export\]"'):
        export_qonnx(build("plain"), tmp_path)
