"""``python -m brevitas_multiquant allocate``: what it prints, writes and refuses."""

from pathlib import Path

import numpy as np
import pytest
import timm
import torch

from brevitas_multiquant import Assignment
from brevitas_multiquant.cli import main

MODEL = ("test_resnet", "--img-size", "32", "--num-classes", "10")


def test_table_assignment_and_plot(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = timm.create_model("test_resnet", num_classes=10)
    torch.save(model.state_dict(), tmp_path / "float.pt")
    images = torch.randn(4, 3, 32, 32).numpy()
    np.savez(tmp_path / "data.npz", images=images, labels=np.arange(4))
    files = [
        *("--weights", str(tmp_path / "float.pt"), "--data", str(tmp_path / "data.npz")),
        *("--output", str(tmp_path / "mixed.yaml"), "--plot", str(tmp_path / "mixed.png")),
    ]
    options = ["--uniform", "4", "--strategy", "fisher", "--pin", "layer1*=8,4"]
    options += ["--pin", "layer4.0.conv2=3"]  # one more, not the only one
    assert main(["allocate", *MODEL, *options, *files]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("fisher: ") and "; uniform 4 bits: " in printed
    assert "note:" not in printed and "layer4.0.conv2" in printed
    saved = Assignment.load(tmp_path / "mixed.yaml")
    pinned = {tuple(pair) for site, pair in saved.items() if site.startswith("layer1")}
    assert pinned == {(8, 4)} and saved["layer4.0.conv2"] == (3, 3)
    assert (tmp_path / "mixed.png").stat().st_size > 1000


def test_a_quick_look_says_what_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--ratio", "0.5", "--strategy", "mixquant", "--candidates", "2", "4", "8"]
    assert main(["allocate", *MODEL, *arguments]) == 0
    printed = capsys.readouterr().out
    assert "note: random weights" in printed and "note: images of noise" in printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "budget: expected one of"),
        (["--bitops", "1"], "what the fewest and the most bits"),
        (["--luts", "1e4"], "target_fps: expected frames a second"),
        (["--uniform", "4", "--pin", "conv1"], "--pin: expected NAME=BITS"),
        (["--uniform", "4", "--pin", "conv1=a"], "--pin: expected NAME=BITS"),
        (["--uniform", "4", "--pin", "nothing=4"], "pins: expected sites or layers"),
        (["--uniform", "4", "--pin", "conv1=4", "conv1=8"], "--pin conv1: expected one pin, got 4"),
        (["--uniform", "4", "--exact", "--strategy", "mixquant"], "exact: expected it with one of"),
        (["--uniform", "4", "--board", "Pynq-Z1"], "board: expected it with a budget of LUTs"),
        (["--uniform", "4", "--weights", "none.pt"], "--weights: expected a state dict"),
        (["--uniform", "4", "--data", "none.npz"], "--data: expected an .npz file"),
        (["--uniform", "4", "--strategy", "fisher"], "expected batches (images, labels)"),
        (["--custom", "4", "--cost-table", "none.csv"], "cost table: expected a CSV file"),
    ],
)
def test_refusals(capsys: pytest.CaptureFixture[str], arguments: list[str], message: str) -> None:
    assert main(["allocate", *MODEL, *arguments]) == 1
    assert message in capsys.readouterr().err


def test_data_without_images(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", pictures=np.zeros(3))
    arguments = ["--uniform", "4", "--data", str(tmp_path / "data.npz")]
    assert main(["allocate", *MODEL, *arguments]) == 1
    assert "expected an array 'images', got ['pictures']" in capsys.readouterr().err
