"""The export recipe on a small packed network: files, what is printed, errors."""

import re

import pytest
import torch

from brevitas_multiquant import Assignment, calibrate, multiquantize, save_packed
from brevitas_multiquant.core.cifar_networks import cifar_resnet8
from brevitas_multiquant.recipes import export as recipe

# Brevitas mentions an optional package when its exporters are imported.
pytestmark = pytest.mark.filterwarnings("ignore:fast_hadamard_transform:UserWarning")


@pytest.fixture
def packed(tmp_path):
    """A packed network, far from trained but with logits that differ."""
    net = multiquantize(cifar_resnet8(num_classes=10), [2, 4], input_shape=(1, 3, 16, 16))
    calibrate(net, [torch.randn(16, 3, 16, 16)])
    path = tmp_path / "net.safetensors"
    save_packed(net, path)
    return path


def test_prints_a_line_for_each_verified_file(packed, capsys):
    folder = packed.parent / "out"
    assert recipe.main([str(packed), "--output", str(folder)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    for bits, line in zip((2, 4), lines, strict=True):
        path = folder / f"model_{bits}b.onnx"
        assert path.stat().st_size > 0
        shown = re.escape(f"{bits} bits: {path}: flipped codes 0 of ")
        found = re.fullmatch(shown + r"(\d+), largest difference of logits (\S+)", line)
        assert found, line
        assert int(found[1]) > 0
        assert float(found[2]) <= 1e-5


def test_passes_options_on(packed, monkeypatch, capsys):
    calls = []

    def fake(net, folder, input_shape=None, bits=None):
        calls.append((input_shape, bits))
        return {4: packed}

    monkeypatch.setattr(recipe, "export_onnx", fake)
    more = ["--format", "onnx", "--bits", "4", "--img-size", "24"]
    assert recipe.main([str(packed), *more]) == 0
    assert calls == [((1, 3, 24, 24), [4])]
    assert capsys.readouterr().out == f"4 bits: {packed}: same class as torch in onnxruntime\n"


def test_errors_are_one_line_and_leave_no_file(packed, capsys):
    folder = packed.parent / "out"
    assert recipe.main([str(packed), "--output", str(folder), "--bits", "6"]) == 2
    assert recipe.main([str(folder / "none.safetensors")]) == 1
    errors = capsys.readouterr().err.splitlines()
    assert [line.partition(":")[0] for line in errors] == ["BitWidthError", "PackedFileError"]
    assert not folder.exists()


@pytest.mark.parametrize("form", ["qonnx", "onnx"])
def test_an_assignment_is_written_and_verified_too(form, packed, tmp_path, capsys):
    mixed = Assignment(4, {"layer1.0.conv2": (2, 2)})
    mixed.save(tmp_path / "mixed.json")
    folder = tmp_path / "out"
    given = ["--bits", "2", "--assignment", str(tmp_path / "mixed.json"), "--format", form]
    assert recipe.main([str(packed), "--output", str(folder), *given]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("2 bits: ") and second.startswith(f"assignment {mixed.name}: ")
    assert second.partition(": ")[2].startswith(str(folder / "model_4b-"))


@pytest.fixture
def for_hardware(tmp_path):
    net = multiquantize(
        cifar_resnet8(num_classes=10), [2, 4], profile="finn", input_shape=(1, 3, 8, 8)
    )
    calibrate(net, [torch.randn(4, 3, 8, 8)])
    save_packed(net, tmp_path / "net.safetensors")
    return tmp_path / "net.safetensors"


def test_projects_for_a_part(for_hardware, capsys, monkeypatch):
    monkeypatch.setattr("brevitas_multiquant.export.finn.environment.finn_version", lambda: None)
    folder = for_hardware.parent / "out"
    more = ["--format", "finn", "--fpga-part", "xc7z020clg400-1", "--bits", "2", "--memory", "auto"]
    assert recipe.main([str(for_hardware), "--output", str(folder), *more]) == 0
    assert capsys.readouterr().out == f"2 bits: {folder / '2b'}: the integers of torch\n"
    assert "xc7z020clg400-1" in (folder / "2b" / "dataflow_build_config.json").read_text()
    assert (folder / "2b" / "memory_config.json").exists()


def test_integers_for_a_processor(for_hardware, capsys):
    folder = for_hardware.parent / "out"
    more = ["--format", "onnx", "--integer", "--bits", "2"]
    assert recipe.main([str(for_hardware), "--output", str(folder), *more]) == 0
    line = capsys.readouterr().out
    assert line.startswith(f"2 bits: {folder / 'model_2b_qdq.onnx'}: 10 layers of integers, 0 conv")
    assert "class of torch for 8 of 8 images" in line


@pytest.mark.parametrize(
    ("more", "name", "message"),
    [
        (["--integer"], "OptionError", "expected --format onnx, got qonnx"),
        (["--board", "ZCU104"], "OptionError", "expected --format finn, got qonnx"),
        (["--format", "finn", "--img-size", "16"], "OptionError", "hardware has its size"),
        (["--format", "finn", "--board", "ZCU1"], "ExportError", "board: expected one of"),
        (
            ["--format", "finn", "--fpga-part", "xc7z007sclg225-1", "--target-fps", "50000"],
            "BoardError",
            "xc7z007sclg225-1 has 14 thousand",
        ),
    ],
)
def test_boards_that_cannot_be(for_hardware, capsys, more, name, message):
    folder = for_hardware.parent / "out"
    assert recipe.main([str(for_hardware), "--output", str(folder), *more]) > 0
    found = capsys.readouterr().err
    assert found.startswith(f"{name}: ") and message in found
    assert not folder.exists()
