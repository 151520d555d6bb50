"""Trained networks that come with the package: read by name wherever a packed file is."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from brevitas_multiquant import ModelSource, MultiQuantNet, calibrate, load_packed, multiquantize
from brevitas_multiquant.cli import main
from brevitas_multiquant.core.image_task import ImageTask
from brevitas_multiquant.core.preprocessing import Preprocessing
from brevitas_multiquant.errors import PackedFileError
from brevitas_multiquant.recipes import evaluate
from brevitas_multiquant.storage import shipped
from brevitas_multiquant.storage.packed_net import save_packed

MOST_BYTES = 1_000_000
NAMES = tuple(f"digit {index}" for index in range(10))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One network of each profile, as a folder that comes with the package."""
    folder = tmp_path_factory.mktemp("zoo")
    torch.manual_seed(0)
    for name, profile in (("digits_tiny", "paper"), ("digits_tiny_finn", "finn")):
        source = ModelSource("timm", "cifar_resnet8", {"num_classes": 10})
        net = multiquantize(
            source.build(), [2, 4], profile=profile, input_shape=(1, 3, 8, 8), source=source
        )
        calibrate(net, [torch.rand(8, 3, 8, 8)])
        told = Preprocessing((0.25,) * 3, (0.5,) * 3, NAMES)
        net.image_task = ImageTask(told, "digits", {2: 50.25, 4: 60.5}, "top-1, epoch 1")
        save_packed(net, folder / f"{name}.safetensors")
    return folder


@pytest.fixture
def zoo(files: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(shipped, "FOLDER", files)
    return files


def test_what_comes_with_the_package_is_whole_and_small() -> None:
    """Each file says how images are prepared, its classes, and its accuracy with the protocol."""
    assert sum(path.stat().st_size for path in shipped.shipped_networks().values()) < MOST_BYTES
    for name in shipped.shipped_networks():
        task = load_packed(f"zoo:{name}").image_task
        assert task is not None and task.dataset and task.protocol
        assert task.accuracy and (task.preprocessing.class_names or task.dataset == "digits")


def test_the_accuracy_of_the_digits_is_measured_again(capsys: pytest.CaptureFixture[str]) -> None:
    name = "zoo:digits_resnet8"
    assert evaluate.main([name, "--dataset", "digits", "--json", "--device", "cpu"]) == 0
    measured = json.loads(capsys.readouterr().out)["top1"]
    task = load_packed(name).image_task
    assert task is not None and task.to_dict()["accuracy"] == pytest.approx(measured)


def test_by_name(zoo: Path) -> None:
    assert list(shipped.shipped_networks()) == ["digits_tiny", "digits_tiny_finn"]
    images = torch.rand(2, 3, 8, 8)
    by_path = load_packed(zoo / "digits_tiny.safetensors")
    for load in (load_packed, MultiQuantNet.from_pretrained):
        with torch.no_grad():
            assert torch.equal(load("zoo:digits_tiny")(images), by_path(images))
    anew = MultiQuantNet.from_pretrained("zoo:digits_tiny", trainable=True)
    assert anew.image_task is not None and not anew.image_task.accuracy


@pytest.mark.parametrize("command", ["inspect", "check", "evaluate", "predict", "export"])
def test_a_name_that_is_not_there(
    zoo: Path, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(PackedFileError, match="did you mean digits_tiny"):
        MultiQuantNet.from_pretrained("zoo:digits_tny")
    images = ["a.png"] if command == "predict" else []
    assert main([command, "zoo:digits_tny", *images]) == 1
    printed = capsys.readouterr().err
    assert "there are: zoo:digits_tiny, zoo:digits_tiny_finn; did you mean digits_tiny" in printed


def test_the_command_line(
    zoo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save("black.png")
    assert main(["predict", "zoo:digits_tiny", "black.png"]) == 0
    assert "digit " in capsys.readouterr().out
    assert main(["inspect", "zoo:digits_tiny"]) == 0
    assert "60.50 % at 4 bits" in capsys.readouterr().out
    assert main(["check", "zoo:digits_tiny_finn"]) == 0
    assert main(["export", "zoo:digits_tiny", "--format", "onnx", "--bits", "2"]) == 0
    assert len(list(Path("export").glob("*.onnx"))) == 1


def test_images_are_scored_as_the_file_says(
    zoo: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """No args.yaml is beside it, and the data set by itself would be normalised otherwise."""
    argv = ["--dataset", "digits", "--json", "--device", "cpu"]
    assert evaluate.main(["zoo:digits_tiny", *argv]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["normalisation"] == [[0.25] * 3, [0.5] * 3]
    assert (told["images"], told["img_size"]) == (360, 8)
    moved = str(shutil.copy(zoo / "digits_tiny.safetensors", tmp_path))
    assert evaluate.main([moved, *argv]) == 0
    assert json.loads(capsys.readouterr().out)["top1"] == told["top1"]
    assert evaluate.main(["zoo:digits_tiny", *argv, "--mean", *["0.5"] * 3]) == 0
    assert json.loads(capsys.readouterr().out)["normalisation"] == [[0.5] * 3, [0.5] * 3]
    assert evaluate.main(["zoo:digits_tiny"]) == 2
    assert "expected the data to score zoo:digits_tiny on" in capsys.readouterr().err


def test_the_page_is_written_from_the_files(zoo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "docs"))
    monkeypatch.delitem(sys.modules, "site_networks", raising=False)
    from site_networks import networks_page

    page = networks_page(shipped.shipped_networks())
    assert "predict zoo:digits_tiny IMAGE" in page
    plain, finn = page.split("## zoo:")[1:]
    size = (zoo / "digits_tiny.safetensors").stat().st_size
    assert f"a file of {size / 1e3:.0f} kB. Data set digits: top-1, epoch 1." in plain
    assert "| 2 | 50.25 | " in plain and "| 4 | 60.50 | " in plain
    assert plain.partition("| 2 | ")[2].splitlines()[0].endswith("| - |")
    luts = finn.partition("| 2 | ")[2].splitlines()[0].split("|")[-2]
    assert int(luts.replace(",", "")) > 2000
    assert "None come with this version" in networks_page({})
