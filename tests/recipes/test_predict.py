"""``predict`` needs a packed file and images, and nothing else."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms

from brevitas_multiquant import ModelSource, MultiQuantNet, calibrate, multiquantize, save_packed
from brevitas_multiquant.cli import main
from brevitas_multiquant.core.image_task import ImageTask
from brevitas_multiquant.core.preprocessing import Preprocessing
from brevitas_multiquant.version import __version__

MEAN, STD = (0.49, 0.48, 0.45), (0.25, 0.24, 0.26)
NAMES = tuple(f"thing {index}" for index in range(10))
BITS = (2, 4)


@pytest.fixture(scope="module")
def net() -> MultiQuantNet:
    torch.manual_seed(0)
    model = ModelSource("timm", "cifar_resnet8").build()
    net = multiquantize(model, BITS, branch_init="shuffle", input_shape=(1, 3, 8, 8))
    calibrate(net, [torch.randn(16, 3, 8, 8)])
    return net.eval()


@pytest.fixture
def folder(net: MultiQuantNet, tmp_path: Path) -> Path:
    """A file that knows what it is for, one that does not, and two pictures."""
    net.image_task = ImageTask(
        Preprocessing(MEAN, STD, NAMES, 0.8, "bilinear"), "things", {2: 50.5, 4: 60.25}, "a test"
    )
    save_packed(net, tmp_path / "told.safetensors")
    net.image_task = None
    save_packed(net, tmp_path / "untold.safetensors")
    for index, size in enumerate([(30, 40), (8, 8)]):
        noise = np.random.default_rng(index).integers(0, 256, (7, 9, 3), dtype=np.uint8)
        picture = Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC)
        picture.save(tmp_path / f"{index}.png")
    return tmp_path


def in_torch(net: MultiQuantNet, path: Path, bits: int) -> torch.Tensor:
    """Probabilities of a picture by torchvision's usual transforms."""
    ways = [
        transforms.Resize(10, transforms.InterpolationMode.BILINEAR),  # 8 / 0.8
        transforms.CenterCrop(8),
        transforms.ToTensor(),
        transforms.Normalize(MEAN, STD),
    ]
    image = transforms.Compose(ways)(Image.open(path).convert("RGB"))[None]
    with torch.no_grad(), net.at_bits(bits):
        return net(image)[0].softmax(0)


def printed(capsys: pytest.CaptureFixture[str], *arguments: Any) -> str:
    assert main(["predict", *map(str, arguments)]) == 0
    return capsys.readouterr().out


def test_classes_at_each_bit_width(
    net: MultiQuantNet, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = [folder / "0.png", folder / "1.png"]
    told = json.loads(printed(capsys, folder / "told.safetensors", *paths, "--json", "--top", 10))
    assert list(told["images"]) == list(map(str, paths))
    assert told["image_task"]["dataset"] == "things"
    for path in paths:
        for bits in BITS:
            expected = in_torch(net, path, bits).sort(descending=True, stable=True)
            got = told["images"][str(path)][str(bits)]
            assert [one["class"] for one in got] == [NAMES[i] for i in expected.indices.tolist()]
            assert [one["probability"] for one in got] == expected.values.tolist()


def test_as_text(net: MultiQuantNet, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = folder / "0.png"
    lines = printed(capsys, folder / "told.safetensors", path, "--top", 1).splitlines()
    best = {bits: in_torch(net, path, bits).max(0) for bits in BITS}
    shown = [
        f"{bits:4} bits: {NAMES[int(at)]} {100 * float(p):.1f} %" for bits, (p, at) in best.items()
    ]
    accuracy = "accuracy: 50.50 % at 2, 60.25 % at 4 bits (things: a test)"
    assert lines == [str(path), *shown, accuracy]
    assert printed(capsys, folder / "told.safetensors", path, "--bits", 4).count(" bits: ") == 1


def test_options_say_what_the_file_does_not(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = json.loads(printed(capsys, folder / "told.safetensors", folder / "0.png", "--json"))
    options = ["--mean", *MEAN, "--std", *STD, "--crop", 0.8, "--interpolation", "bilinear"]
    more = [*options, "--class-names", *NAMES, "--json"]
    said = json.loads(printed(capsys, folder / "untold.safetensors", folder / "0.png", *more))
    assert said["images"] == told["images"]
    assert said["image_task"] is None
    numbers = printed(capsys, folder / "untold.safetensors", folder / "0.png", *options)
    assert "thing" not in numbers


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["untold.safetensors", "0.png"], "give --mean and --std as in training"),
        (["told.safetensors", "no.png"], "no.png: expected an image, cannot read it"),
        (["told.safetensors", "told.safetensors"], "expected an image, cannot read it"),
        (["0.png", "0.png"], "expected a packed network, as best.safetensors of a run"),
        (["no.safetensors", "0.png"], "expected a packed file at"),
        (["told.safetensors", "0.png", "--bits", "3"], "predict: expected"),
        (["told.safetensors", "0.png", "--mean", "0.5"], "a positive std for each mean"),
        (["told.safetensors", "0.png", "--class-names", "a", "b"], "expected 10 names"),
        (["told.safetensors", "0.png", "--crop", "2"], "a share from above 0 to 1"),
    ],
)
def test_refusals_are_one_line(
    arguments: list[str], message: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    of_files = [str(folder / one) if "." in one and one[-1] in "gs" else one for one in arguments]
    assert main(["predict", *of_files]) in (1, 2)
    captured = capsys.readouterr()
    assert message in captured.err
    assert "Error: " in captured.err and captured.err.count("\n") == 1
    assert not captured.out


def test_as_a_module_from_another_folder(folder: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "brevitas_multiquant"]
    arguments = ["predict", "told.safetensors", "1.png"]
    done = subprocess.run(
        [*command, *arguments], cwd=folder, capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("1.png\n   2 bits: thing ")


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["--version"])
    assert stopped.value.code == 0
    assert capsys.readouterr().out == f"brevitas-multiquant {__version__}\n"
