"""A file of the wrong kind, wherever one is named: a line that says what it is, no traceback."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from onnx import TensorProto, helper, save
from PIL import Image
from safetensors.torch import save_file

from brevitas_multiquant.cli import main
from brevitas_multiquant.recipes import demo

NET = helper.make_graph(
    [helper.make_node("Relu", ["x"], ["y"])],
    "graph",
    [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])],
    [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])],
)
OF_PACKED = {
    "net.onnx": "expected a packed network, as best.safetensors of a run or what save_packed "
    "writes, got an ONNX graph",
    "image.png": "got an image",
    "empty.safetensors": "got an empty file",
    "state.pth": "got a file of torch, or a zip",
    "options.yaml": "got YAML",
    "damaged.safetensors": "not a whole safetensors file",
    "checkpoint-0001-0000000.safetensors": "it holds a checkpoint of a run, as it seems: take "
    "best.safetensors or last.safetensors beside it, or go on with --resume .",
    "float.safetensors": "it holds other tensors, as of a float network: brevitas-multiquant "
    "train --initial-checkpoint float.safetensors starts from those",
    "none.safetensors": "expected a packed file at none.safetensors, found none",
}
"""What a packed file was taken for -> what is said."""

READERS = {
    "inspect": (),
    "check": (),
    "evaluate": ("--dataset", "digits"),
    "predict": ("image.png",),
    "export": (),
    "demo": ("--no-browser",),
}
"""Commands that read a packed file -> what else they are given."""

TRAIN = ("train", "--experiment", "run", "--dry-run")
OTHERS = [
    (("plot", "image.png"), "image.png: expected the folder of a run, found no args.yaml"),
    (("plot", "folder"), "folder: expected the folder of a run, found no args.yaml"),
    ((*TRAIN, "-c", "image.png"), "image.png: expected YAML"),
    ((*TRAIN, "-c", "empty"), "empty: expected a mapping of option names"),
    ((*TRAIN, "-c", "folder"), "expected a YAML file of options at folder, found none"),
    ((*TRAIN, "--data-dir", "image.png"), "expected a folder or a tar of images, got image.png"),
    ((*TRAIN, "--data-dir", "empty"), "expected a folder or a tar of images, got empty"),
    ((*TRAIN, "--initial-checkpoint", "net.onnx"), "expected weights in a file of torch or"),
    ((*TRAIN, "--initial-checkpoint", "empty"), "got something else, or a damaged file"),
    ((*TRAIN, "--initial-checkpoint", "folder"), "expected a file, found none at folder"),
    (("train", "--resume", "image.png"), "expected a run with its args.yaml in image.png"),
    (("search", "--resume", "folder"), "expected a run with its args.yaml in folder"),
    (("inspect", "cifar_resnet8", "--assignment", "image.png"), "expected a file called .json"),
    (("inspect", "folder"), "a folder of that name is no packed file"),
    *(
        (
            ("allocate", "cifar_resnet8", "--ratio", "0.5", "--uniform", "8", "--data", name),
            "expected an .npz file of numpy.savez(FILE, images=..., labels=...)",
        )
        for name in ("image.png", "empty")
    ),
]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    save(helper.make_model(NET), folder / "net.onnx")
    Image.new("RGB", (8, 8)).save(folder / "image.png")
    torch.save({"weight": torch.zeros(1)}, folder / "state.pth")
    for name in ("empty", "empty.safetensors"):
        (folder / name).touch()
    (folder / "damaged.safetensors").write_bytes(b"\x80\x02\x00half of a file")
    (folder / "options.yaml").write_text("lr: 0.1\n")
    values = {"net.conv.weight": torch.zeros(1)}
    save_file(values, folder / "checkpoint-0001-0000000.safetensors", {"version": "1"})
    save_file({"conv.weight": torch.zeros(1)}, folder / "float.safetensors")
    (folder / "folder").mkdir()
    return folder


def refused(arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> str:
    """What is printed: one line."""
    assert main(arguments) in (1, 2)
    captured = capsys.readouterr()
    assert not captured.out
    (line,) = captured.err.splitlines()
    return line


@pytest.mark.parametrize("command", READERS)
def test_where_a_packed_file_is_read(
    files: Path,
    command: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(demo, "_gradio", lambda: None)
    monkeypatch.chdir(files)
    for name, told in OF_PACKED.items():
        line = refused((command, name, *READERS[command]), capsys)
        assert line.startswith("PackedFileError: ") and told in line


@pytest.mark.parametrize("command", ["evaluate", "predict", "export"])
def test_a_folder_in_place_of_the_packed_file_in_it(
    files: Path,
    command: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(shutil.copytree(files, tmp_path / "files"))
    empty = refused((command, "folder", *READERS[command]), capsys)
    assert empty.endswith("expected a packed file at folder, found a folder: it holds none")
    Path("folder/last.safetensors").touch()
    one = refused((command, "folder", *READERS[command]), capsys)
    assert one.endswith(f"found a folder: take {Path('folder/last.safetensors')}")


@pytest.mark.parametrize(("arguments", "told"), OTHERS, ids=lambda value: value[-1])
def test_where_something_else_is_read(
    files: Path,
    arguments: tuple[str, ...],
    told: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(files)
    assert told in refused(arguments, capsys)


def test_json_of_check(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["cifar_resnet8", "--bits", "2", "4", "--img-size", "8", "--num-classes", "10"]
    assert main(["check", *arguments, "--board", "ZCU104", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["maps"], told["violations"], told["bits"]) == (True, [], [2, 4])
    assert told["fit"]
    assert main(["check", "test_convnext", "--bits", "2", "--img-size", "32", "--json"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert not told["maps"] and told["violations"] and told["fit"] is None


def test_json_of_inspect(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", "cifar_resnet8", "--bits", "2", "4", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert list(told["costs"]) == ["2", "4"] and told["costs"]["4"]["branches"] == [0, 1]
    assert told["file_bytes"] == told["total_bytes"] > told["costs"]["2"]["bytes"]


@pytest.mark.parametrize(
    ("command", "given", "config", "held"),
    [
        ("train", ("--lr", "0.5"), "digits_resnet8", {"lr": 0.5}),
        (
            *("search", ("--budget", "uniform=4"), "search_digits_resnet8"),
            {"budget": {"uniform": 4}},
        ),
        (
            *("evaluate", ("float.safetensors", "--batch-size", "16"), "digits_resnet8"),
            {"batch_size": 16},
        ),
    ],
)
def test_print_config_is_what_c_reads(
    command: str,
    given: tuple[str, ...],
    config: str,
    held: dict[str, object],
    files: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """Printed again from the file, it is the same but for the name of the file."""
    monkeypatch.chdir(files)
    place = [one for one in given if one.endswith(".safetensors")]
    first = printed([command, *given, "-c", config, "--print-config"], capsys)
    assert first.items() >= held.items()
    path = tmp_path / "c.yaml"
    path.write_text(yaml.safe_dump(first))
    second = printed([command, *place, "-c", str(path), "--print-config"], capsys)
    assert {**first, "config": None} == {**second, "config": None}


def printed(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> dict[str, object]:
    """What ``--print-config`` prints."""
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code in (0, None)
    return dict(yaml.safe_load(capsys.readouterr().out))
