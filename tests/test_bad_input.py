"""Wrong calls across the public API and the command line: each is answered, none leaves a trace.

A named error that says what was expected, nothing changed on disk, and the network as it was.
"""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from brevitas_multiquant import (
    InPlaceDistillation,
    ModelSource,
    MultiQuantConfig,
    MultiQuantError,
    MultiQuantNet,
    calibrate,
    cost,
    extract_subnet,
    load_packed,
    multiquantize,
    save_packed,
)
from brevitas_multiquant.cli import main
from brevitas_multiquant.errors import (
    BitWidthError,
    CalibrationError,
    ConfigError,
    ExportError,
    HubError,
    PackedFileError,
    SelectionError,
    SourceError,
    TraceError,
    UnsupportedModelError,
)
from brevitas_multiquant.export import export_onnx, export_qonnx
from tests.tiny import IMAGE, TinyNet

OWN = ModelSource("own", "TinyNet")


@dataclass
class Case:
    """What a wrong call may touch: a good network, a folder with its file, images."""

    net: MultiQuantNet
    folder: Path
    images: Tensor

    @property
    def file(self) -> Path:
        return self.folder / "net.safetensors"


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    """One for all: each test checks that it is left as it was."""
    folder = tmp_path_factory.mktemp("bad_input")
    torch.manual_seed(0)
    images = torch.randn(4, *IMAGE[1:])
    net = tiny(source=OWN)
    calibrate(net, [images])
    save_packed(net, folder / "net.safetensors")
    (folder / "a_file").write_text("not a folder")
    (folder / "a_folder").mkdir()
    (folder / "garbage.safetensors").write_bytes(b"\x80\x04garbage")
    return Case(net, folder, images)


def tiny(bits: Any = (2, 4), model: Any = None, **options: Any) -> MultiQuantNet:
    return multiquantize(
        TinyNet() if model is None else model, bits, **{"input_shape": IMAGE, **options}
    )


class NoTensor(TinyNet):
    def forward(self, x: Tensor) -> Any:
        return {"size": super().forward(x).shape[1]}


class TwoInputs(TinyNet):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return super().forward(x + y)


Call = Callable[[Case], object]
WRONG: dict[str, tuple[Call, type[MultiQuantError], str]] = {
    # multiquantize: bit-widths
    "bits: none": (lambda c: tiny([]), BitWidthError, "at least one"),
    "bits: a number": (lambda c: tiny(8), BitWidthError, "expected a list"),
    "bits: None": (lambda c: tiny(None), BitWidthError, "expected a list"),
    "bits: text": (lambda c: tiny("28"), BitWidthError, "whole numbers"),
    "bits: fractions": (lambda c: tiny([2.0, 4.0]), BitWidthError, "whole numbers"),
    "bits: truth values": (lambda c: tiny([True, 4]), BitWidthError, "whole numbers"),
    "bits: twice": (lambda c: tiny([2, 2, 4]), BitWidthError, "each bit-width once"),
    "bits: zero": (lambda c: tiny([0, 2]), BitWidthError, "expected 2 to 16"),
    "bits: negative": (lambda c: tiny([-2]), BitWidthError, "expected 2 to 16"),
    "bits: too many": (lambda c: tiny([2, 32]), BitWidthError, "expected 2 to 16"),
    # multiquantize: selections
    "selection: unknown": (lambda c: tiny(selection="best"), SelectionError, "amortized"),
    "selection: not a mapping": (
        lambda c: tiny(selection=[0, 1]),
        SelectionError,
        "one entry for each",
    ),
    "selection: a bit-width left out": (
        lambda c: tiny(selection={2: [0]}),
        SelectionError,
        r"\[2, 4\]",
    ),
    "selection: too few branches": (
        lambda c: tiny(selection={2: [0], 4: [1]}),
        SelectionError,
        r"selection\[4\]",
    ),
    "selection: a branch twice": (
        lambda c: tiny(selection={2: [0], 4: [1, 1]}),
        SelectionError,
        r"selection\[4\]",
    ),
    "selection: no such branch": (
        lambda c: tiny(selection={2: [7], 4: [0, 1]}),
        SelectionError,
        "branch indices 0 to 1",
    ),
    "selection: a number": (
        lambda c: tiny(selection={2: 0, 4: [0, 1]}),
        SelectionError,
        "list of branch indices",
    ),
    "selection: names": (
        lambda c: tiny(selection={2: ["a"], 4: ["a", "b"]}),
        SelectionError,
        r"selection\[2\]",
    ),
    # multiquantize: options
    "profile": (lambda c: tiny(profile="no such"), ConfigError, "profile"),
    "merge": (lambda c: tiny(merge="max"), ConfigError, "merge"),
    "branch_init": (lambda c: tiny(branch_init="zeros"), ConfigError, "branch_init"),
    "input_shape: three numbers": (
        lambda c: tiny(input_shape=(3, 8, 8)),
        ConfigError,
        "input_shape",
    ),
    "input_shape: zero": (lambda c: tiny(input_shape=(1, 3, 0, 8)), ConfigError, "input_shape"),
    "input_shape: text": (lambda c: tiny(input_shape="8x8"), ConfigError, "input_shape"),
    "input_shape: a number": (lambda c: tiny(input_shape=8), ConfigError, "input_shape"),
    "input_shape: fractions": (
        lambda c: tiny(input_shape=(1, 3, 8.0, 8.0)),
        ConfigError,
        "input_shape",
    ),
    "input_shape: channels": (lambda c: tiny(input_shape=(1, 4, 8, 8)), TraceError, "input_shape"),
    "stem: no such module": (
        lambda c: tiny(stem="nowhere"),
        UnsupportedModelError,
        "stem='nowhere'",
    ),
    "head: no such module": (
        lambda c: tiny(head="nowhere"),
        UnsupportedModelError,
        "head='nowhere'",
    ),
    "stem after head": (
        lambda c: tiny(stem="fc", head="stem"),
        UnsupportedModelError,
        "in front of the head",
    ),
    # multiquantize: models
    "model: a name": (lambda c: tiny(model="resnet18"), UnsupportedModelError, "nn.Module"),
    "model: a class": (lambda c: tiny(model=TinyNet), UnsupportedModelError, "nn.Module"),
    "model: a network already": (lambda c: tiny(model=c.net), UnsupportedModelError, "already"),
    "model: a subnet": (
        lambda c: tiny(model=extract_subnet(c.net, 2)),
        UnsupportedModelError,
        "Brevitas layer already",
    ),
    "model: no convolution": (
        lambda c: tiny(model=nn.Sequential(nn.Flatten(), nn.Linear(192, 3))),
        UnsupportedModelError,
        "at least one convolution",
    ),
    "model: no tensor": (
        lambda c: tiny(model=NoTensor()),
        UnsupportedModelError,
        "returns tensors",
    ),
    "model: two inputs": (
        lambda c: tiny(model=TwoInputs()),
        TraceError,
        "forward|parameter y",
    ),
    # the network
    "set_active_bits: no candidate": (
        lambda c: c.net.set_active_bits(6),
        BitWidthError,
        r"one of the bit-widths \[2, 4\]",
    ),
    "set_active_bits: text": (lambda c: c.net.set_active_bits("4"), BitWidthError, "got '4'"),
    "set_active_bits: a list": (lambda c: c.net.set_active_bits([4]), BitWidthError, r"got \[4\]"),
    "at_bits: no candidate": (
        lambda c: c.net.at_bits(3).__enter__(),
        BitWidthError,
        "at_bits",
    ),
    "extract_subnet: no candidate": (
        lambda c: extract_subnet(c.net, 8),
        BitWidthError,
        r"one of the bit-widths \[2, 4\]",
    ),
    "extract_subnet: no data seen": (
        lambda c: extract_subnet(tiny(), 2),
        CalibrationError,
        "call calibrate",
    ),
    "cost: shape": (lambda c: cost(c.net, (1, 7, 8, 8)), ConfigError, "input_shape"),
    "cost: three numbers": (lambda c: cost(c.net, (3, 8, 8)), ConfigError, "input_shape"),
    # calibrate
    "calibrate: nothing": (lambda c: calibrate(c.net, []), CalibrationError, "at least one"),
    "calibrate: no iterable": (lambda c: calibrate(c.net, 5), CalibrationError, "batches"),
    "calibrate: an array": (
        lambda c: calibrate(c.net, [np.zeros(IMAGE, np.float32)]),
        CalibrationError,
        "ndarray",
    ),
    "calibrate: one image": (
        lambda c: calibrate(c.net, [torch.rand(3, 8, 8)]),
        CalibrationError,
        r"N, C, H, W",
    ),
    "calibrate: no images in a batch": (
        lambda c: calibrate(c.net, [torch.rand(0, 3, 8, 8)]),
        CalibrationError,
        r"N, C, H, W",
    ),
    "calibrate: bytes": (
        lambda c: calibrate(c.net, [torch.zeros(4, 3, 8, 8, dtype=torch.uint8)]),
        CalibrationError,
        "floating",
    ),
    "calibrate: channels": (
        lambda c: calibrate(c.net, [torch.rand(4, 5, 8, 8)]),
        CalibrationError,
        r"images that the network takes, such as \(1, 3, 8, 8\)",
    ),
    "calibrate: double precision": (
        lambda c: calibrate(c.net, [c.images.double()]),
        CalibrationError,
        r"expected torch.float32 images .* got torch.float64",
    ),
    "calibrate: not a number": (
        lambda c: calibrate(c.net, [c.images * torch.nan]),
        CalibrationError,
        "not finite",
    ),
    "calibrate: infinite": (
        lambda c: calibrate(c.net, [c.images / 0]),
        CalibrationError,
        "not finite",
    ),
    "calibrate: no batches": (
        lambda c: calibrate(c.net, [c.images], batches=0),
        ConfigError,
        "at least 1",
    ),
    "calibrate: observer": (
        lambda c: calibrate(c.net, [c.images], observer="best"),
        ConfigError,
        "observer",
    ),
    # training and configurations
    "distillation: loss": (
        lambda c: InPlaceDistillation(c.net, loss="max"),
        ConfigError,
        "loss",
    ),
    "configuration: not a mapping": (
        lambda c: MultiQuantConfig.from_dict([]),  # type: ignore[arg-type]
        ConfigError,
        "expected the keys",
    ),
    "configuration: another version": (
        lambda c: MultiQuantConfig.from_dict({**c.net.config.to_dict(), "version": 9}),
        ConfigError,
        "version",
    ),
    # sources
    "source: library": (
        lambda c: ModelSource("keras", "resnet18").build(),
        SourceError,
        "expected a library",
    ),
    "source: no such model": (
        lambda c: ModelSource("timm", "no_such_net").build(),
        SourceError,
        "no_such_net",
    ),
    "source: a repository": (
        lambda c: ModelSource("timm", "hf-hub:timm/resnet18.a1_in1k").build(),
        SourceError,
        "no model of that name",
    ),
    "source: weights": (
        lambda c: ModelSource("timm", "test_resnet", {"checkpoint_path": "x.pth"}).build(),
        SourceError,
        "load no weights",
    ),
    "source: objects": (
        lambda c: ModelSource("timm", "test_resnet", {"act_layer": nn.ReLU}).build(),
        SourceError,
        "one of your own",
    ),
    "source: a detector": (
        lambda c: ModelSource("torchvision", "fasterrcnn_resnet50_fpn").build(),
        SourceError,
        "no model of it for classes, segmentation or video",
    ),
    "source: arguments": (
        lambda c: ModelSource("timm", "test_resnet", {"wings": 2}).build(),
        SourceError,
        "wings",
    ),
    # packed files
    "save: no source": (
        lambda c: save_packed(tiny(), c.folder / "new.safetensors"),
        SourceError,
        "unknown source",
    ),
    "save: no data seen": (
        lambda c: save_packed(tiny(source=OWN), c.folder / "new.safetensors"),
        CalibrationError,
        "call calibrate",
    ),
    "save: no folder": (
        lambda c: save_packed(c.net, c.folder / "nowhere" / "net.safetensors"),
        PackedFileError,
        "cannot write",
    ),
    "save: onto a folder": (
        lambda c: save_packed(c.net, c.folder / "a_folder"),
        PackedFileError,
        "cannot write",
    ),
    "save: below a file": (
        lambda c: save_packed(c.net, c.folder / "a_file" / "net.safetensors"),
        PackedFileError,
        "cannot write",
    ),
    "save: a name with a zero byte": (
        lambda c: save_packed(c.net, f"{c.folder}/a\0b"),
        PackedFileError,
        "cannot write",
    ),
    "save: a name too long": (
        lambda c: save_packed(c.net, c.folder / ("x" * 300)),
        PackedFileError,
        "cannot write",
    ),
    "load: missing": (
        lambda c: load_packed(c.folder / "no.safetensors"),
        PackedFileError,
        "found none",
    ),
    "load: a folder": (lambda c: load_packed(c.folder), PackedFileError, "found a folder"),
    "load: garbage": (
        lambda c: load_packed(c.folder / "garbage.safetensors"),
        PackedFileError,
        "not a whole safetensors file",
    ),
    "load: a model of one's own is missing": (
        lambda c: load_packed(c.file),
        SourceError,
        r"load_packed\(path, model=\.\.\.\)",
    ),
    "load: another model": (
        lambda c: load_packed(c.file, nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten())),
        PackedFileError,
        "header that describes a network",
    ),
    "load: not a model": (
        lambda c: load_packed(c.file, "TinyNet"),  # type: ignore[arg-type]
        SourceError,
        "nn.Module",
    ),
    # the Hub
    "from_pretrained: no file": (
        lambda c: MultiQuantNet.from_pretrained(c.folder / "a_folder"),
        HubError,
        "model.safetensors",
    ),
    "save_pretrained: accuracies": (
        lambda c: c.net.save_pretrained(c.folder / "hub", accuracy={2: 1.0}),
        HubError,
        "bit-widths",
    ),
    "save_pretrained: onto a file": (
        lambda c: c.net.save_pretrained(c.folder / "a_file"),
        ExportError,
        "folder that can be written",
    ),
    # exports
    "export: bits": (
        lambda c: export_qonnx(c.net, c.folder / "out", bits=[8]),
        BitWidthError,
        r"out of \[2, 4\]",
    ),
    "export: no bits": (
        lambda c: export_qonnx(c.net, c.folder / "out", bits=[]),
        BitWidthError,
        r"out of \[2, 4\]",
    ),
    "export: a number": (
        lambda c: export_qonnx(c.net, c.folder / "out", bits=4),  # type: ignore[arg-type]
        BitWidthError,
        r"out of \[2, 4\]",
    ),
    "export: shape": (
        lambda c: export_qonnx(c.net, c.folder / "out", (3, 8, 8)),
        ExportError,
        "four positive integers",
    ),
    "export: channels": (
        lambda c: export_qonnx(c.net, c.folder / "out", (1, 4, 8, 8)),
        ExportError,
        "3 channels",
    ),
    "export: onto a file": (
        lambda c: export_qonnx(c.net, c.folder / "a_file"),
        ExportError,
        "folder that can be written",
    ),
    "export: no data seen": (
        lambda c: export_qonnx(tiny(), c.folder / "out"),
        CalibrationError,
        "call calibrate",
    ),
    "onnx: too many bits": (
        lambda c: export_onnx(tiny([2, 16]), c.folder / "out"),
        ExportError,
        "at most 8 bits",
    ),
}


def on_disk(folder: Path) -> dict[str, bytes | None]:
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }


def logits(net: MultiQuantNet, images: Tensor) -> list[Tensor]:
    found = []
    for bits in net.bits:
        with torch.no_grad(), net.at_bits(bits):
            found.append(net(images))
    return found


@pytest.mark.parametrize("name", WRONG)
def test_wrong_call(name: str, case: Case) -> None:
    call, error, message = WRONG[name]
    case.net.eval().set_active_bits(2)
    before = on_disk(case.folder), case.net.state_dict(), logits(case.net, case.images)
    state = {key: value.clone() for key, value in before[1].items()}
    with pytest.raises(error, match=message):
        call(case)
    assert on_disk(case.folder) == before[0]
    assert all(torch.equal(state[key], value) for key, value in case.net.state_dict().items())
    assert case.net.active_bits == 2
    assert not any(module.training for module in case.net.modules())
    for ours, theirs in zip(logits(case.net, case.images), before[2], strict=True):
        assert torch.equal(ours, theirs)


def test_the_table_is_long_enough() -> None:
    assert len(WRONG) + len(REFUSED) + len(USAGE) >= 60


# --- when the machine fails, not the user


def test_full_disk(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    before = on_disk(case.folder)

    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("os.fsync", full)
        with pytest.raises(PackedFileError, match="No space left on device"):
            save_packed(case.net, case.file)
        with pytest.raises(PackedFileError, match="No space left on device"):
            case.net.save_pretrained(case.folder / "hub")
    assert on_disk(case.folder) == before


def test_network_is_usable_after_a_failed_export(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Brevitas leaves a model in export mode when its exporter fails."""
    before, files = logits(case.net.eval(), case.images), on_disk(case.folder)

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("the exporter broke down")

    with monkeypatch.context() as patched:
        patched.setattr("torch.onnx.export", fail)
        for export in (export_qonnx, export_onnx):
            with pytest.raises((ExportError, RuntimeError), match="the exporter broke down"):
                export(case.net, case.folder / "out")
    assert on_disk(case.folder) == files
    for ours, theirs in zip(logits(case.net, case.images), before, strict=True):
        assert torch.equal(ours, theirs)
    assert set(export_qonnx(case.net, tmp_path)) == {2, 4}


# --- the command line: 2 for usage, 1 for failure, one message, no traceback

REFUSED: dict[str, tuple[int, list[str], str]] = {
    "no such model": (2, ["no_such_model"], "no_such_model"),
    "no such library": (2, ["keras:resnet18"], "timm model name or torchvision:NAME"),
    "a repository": (2, ["hf-hub:timm/resnet18"], "no model of that name"),
    "a transformer": (1, ["test_vit"], "matrices of activations"),
    "bits twice": (2, ["test_resnet", "--bits", "2", "2"], "each bit-width once"),
    "no such selection": (2, ["resnet18", "--selection", "best"], "amortized"),
    "too many bits": (2, ["test_resnet", "--bits", "64"], "2 to 16"),
}
USAGE: dict[str, list[str]] = {
    "no command": [],
    "no such command": ["trian"],
    "no model": ["inspect"],
    "no such option": ["inspect", "resnet18", "--speed", "9"],
    "bits that are no numbers": ["inspect", "resnet18", "--bits", "two"],
    "image too small": ["inspect", "resnet18", "--img-size", "0"],
    "no channels": ["inspect", "test_resnet", "--in-chans", "0"],
    "no classes": ["inspect", "test_resnet", "--num-classes", "0"],
    "two models": ["inspect", "resnet18", "resnet34"],
}


@pytest.mark.parametrize("name", REFUSED)
def test_command_that_fails(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    status, arguments, message = REFUSED[name]
    assert main(["inspect", *arguments]) == status
    captured = capsys.readouterr()
    assert re.match(r"\w+Error: ", captured.err)
    assert message in captured.err
    assert "Traceback" not in captured.err
    assert not captured.out


@pytest.mark.parametrize("name", USAGE)
def test_wrong_usage(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_info:
        main(USAGE[name])
    assert exit_info.value.code == 2
    assert "usage: " in capsys.readouterr().err


def test_command_line_as_a_process(tmp_path: Path) -> None:
    command = [sys.executable, "-W", "ignore", "-m", "brevitas_multiquant", "inspect", "no_such"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    result = subprocess.run(
        command, capture_output=True, text=True, cwd=tmp_path, env=environment, check=False
    )
    assert result.returncode == 2
    assert "OptionError: timm cannot build 'no_such'" in result.stderr
    assert "Traceback" not in result.stderr
    assert not list(tmp_path.iterdir())
