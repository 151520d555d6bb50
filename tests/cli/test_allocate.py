"""``brevitas-multiquant allocate``: what it prints, writes and refuses."""

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
        *("--initial-checkpoint", str(tmp_path / "float.pt"), "--data", str(tmp_path / "data.npz")),
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


def test_measured_costs_and_an_accuracy(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """A table of latencies in a column of its own, some bits between those that were measured."""
    layers = [f"layer{n}.0.conv{m}" for n in (1, 2, 3, 4) for m in (1, 2, 3)]
    layers += [f"layer{n}.0.downsample.{m}" for n in (1, 2, 3, 4) for m in (0, 1)]
    layers += ["conv1.3", "conv1.6"]
    rows = [f"{layer},{bits},{3 * bits},1" for layer in layers for bits in (2, 4, 8)]
    (tmp_path / "us.csv").write_text("\n".join(["layer,bits,latency_us,power", *rows]))
    images = torch.randn(4, 3, 32, 32).numpy()
    np.savez(tmp_path / "data.npz", images=images, labels=np.zeros(4, int))
    arguments = ["--of", "custom", "--ratio", "1", "--cost-table", str(tmp_path / "us.csv")]
    arguments += ["--cost-column", "latency_us", "--interpolate", "--candidates", "3", "6"]
    arguments += ["--accuracy-drop", "1", "--strategy", "sensitivity", "--option", "metric=kl"]
    arguments += ["--data", str(tmp_path / "data.npz")]
    assert main(["allocate", *MODEL, *arguments]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("sensitivity: ") and "; accuracy " in printed


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
        (["--accuracy-drop", "0.1"], "one class number for each image, got none labels"),
        (["--uniform", "4", "--option", "metric"], "--option: expected NAME=VALUE, got 'metric'"),
        (["--uniform", "4", "--option", "x=1"], "options: expected none for the strategy 'sqnr'"),
        (["--luts", "1e4"], "target_fps: expected frames a second"),
        (["--uniform", "4", "--pin", "conv1"], "--pin: expected NAME=BITS"),
        (["--uniform", "4", "--pin", "conv1=a"], "--pin: expected NAME=BITS"),
        (["--uniform", "4", "--pin", "nothing=4"], "pins: expected sites or layers"),
        (["--uniform", "4", "--pin", "conv1=4", "conv1=8"], "--pin conv1: expected one pin, got 4"),
        (["--uniform", "4", "--exact", "--strategy", "mixquant"], "exact: expected it with one of"),
        (["--uniform", "4", "--board", "Pynq-Z1"], "board: expected it with a budget of LUTs"),
        (
            ["--uniform", "4", "--initial-checkpoint", "none.pt"],
            "--initial-checkpoint: expected a state dict",
        ),
        (["--uniform", "4", "--data", "none.npz"], "--data: expected an .npz file"),
        (["--uniform", "4", "--strategy", "fisher"], "expected batches (images, labels)"),
        (["--custom", "4", "--cost-table", "none.csv"], "cost table: expected a CSV file"),
    ],
)
def test_refusals(capsys: pytest.CaptureFixture[str], arguments: list[str], message: str) -> None:
    try:
        status = main(["allocate", *MODEL, *arguments])
    except SystemExit as stopped:  # of the parser
        status = stopped.code
    assert status in (1, 2)
    assert message in capsys.readouterr().err


def test_data_without_images(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", pictures=np.zeros(3))
    arguments = ["--uniform", "4", "--data", str(tmp_path / "data.npz")]
    assert main(["allocate", *MODEL, *arguments]) == 1
    assert "expected an array 'images', got ['pictures']" in capsys.readouterr().err
