"""What needs a package that is not installed says so, and how to install it."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from PIL import Image
from torch import nn

import brevitas_multiquant.core.cifar_networks  # noqa: F401  (registers the networks)
from brevitas_multiquant import (
    Assignment,
    Budget,
    MultiQuantNet,
    allocate,
    calibrate,
    multiquantize,
    save_packed,
)
from brevitas_multiquant.cli import commands
from brevitas_multiquant.core.float_model import ModelSource
from brevitas_multiquant.errors import MultiQuantError
from brevitas_multiquant.export import export_onnx, export_qonnx

SHAPE = (1, 3, 8, 8)


@pytest.fixture
def model() -> nn.Module:
    layers = [nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(64, 5)).eval()


@pytest.fixture
def net(model: nn.Module) -> MultiQuantNet:
    made = multiquantize(model, [2], input_shape=SHAPE, check=False)
    calibrate(made, [torch.rand(2, *SHAPE[1:])])
    return made.eval()


def absent(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)


def exactly(model: nn.Module, net: MultiQuantNet, folder: Path) -> None:
    data = [torch.rand(2, *SHAPE[1:])]
    allocate(model, Budget(uniform=3), data=data, input_shape=SHAPE, exact=True)


def plot(model: nn.Module, net: MultiQuantNet, folder: Path) -> None:
    allocate(model, Budget(uniform=3), strategy="uniform", input_shape=SHAPE).plot()


Use = Callable[[nn.Module, MultiQuantNet, Path], Any]
USES: list[tuple[str, Use]] = [
    ("scipy", exactly),
    ("matplotlib", plot),
    ("yaml", lambda model, net, folder: Assignment(4, {}).save(folder / "mixed.yaml")),
    ("timm", lambda *_: ModelSource("timm", "resnet18", {}).build()),
    ("onnx", lambda model, net, folder: export_qonnx(net, folder)),
    ("onnxruntime", lambda model, net, folder: export_onnx(net, folder)),
    ("huggingface_hub", lambda *_: MultiQuantNet.from_pretrained("nobody/nothing")),
]


@pytest.mark.parametrize(("package", "use"), USES, ids=[package for package, _ in USES])
def test_functions(
    package: str, use: Use, model: Any, net: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    absent(monkeypatch, package)
    with pytest.raises(MultiQuantError, match=rf"{package}.*pip install"):
        use(model, net, tmp_path)


@pytest.mark.parametrize(
    ("package", "command"),
    [
        (
            "PIL",
            ["predict", "{net}", "{image}", *("--mean", *("0.5",) * 3), *("--std", *("0.2",) * 3)],
        ),
        ("yaml", ["train", "-c", "digits_resnet8"]),
    ],
)
def test_command_lines(
    package: str, command: list[str], tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    """One line and an exit status, no traceback."""
    packed, image = tmp_path / "net.safetensors", tmp_path / "image.png"
    model = timm.create_model("cifar_resnet8", num_classes=5)
    net = multiquantize(model, [2], input_shape=SHAPE, check=False)
    calibrate(net, [torch.rand(2, *SHAPE[1:])])
    save_packed(net, packed)
    Image.new("RGB", (8, 8)).save(image)
    absent(monkeypatch, package)
    names = {"net": str(packed), "image": str(image)}
    assert commands.main([word.format(**names) for word in command]) == 1
    said = capsys.readouterr().err
    assert package in said and "pip install" in said and "Traceback" not in said
