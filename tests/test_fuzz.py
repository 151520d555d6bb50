"""Damaged packed files: a hundred of those that `integration_tests/test_fuzz.py` reads."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from brevitas_multiquant import (
    ModelSource,
    MultiQuantError,
    MultiQuantNet,
    calibrate,
    load_packed,
    multiquantize,
    save_packed,
)
from tests.mutations import mutated, watching

SHAPE = (1, 3, 32, 32)
BITS = (2, 3, 4)


def outputs(net: MultiQuantNet, images: Tensor) -> list[Tensor]:
    with torch.no_grad():
        return [net(images) for bits in net.bits for _ in [net.set_active_bits(bits)]]


def packed(folder: Path, name: str, method: str) -> Path:
    source = ModelSource("timm", name)
    net = multiquantize(
        source.build(), BITS, method=method, input_shape=SHAPE, source=source, check=False
    )
    calibrate(net, [torch.rand(2, *SHAPE[1:])])
    return save_packed(net, folder / f"{name}.safetensors")


class DamagedFiles:
    """Reads damaged files and says how each was answered."""

    def __init__(self, folder: Path, method: str = "multiquant") -> None:
        torch.manual_seed(0)
        self.path = packed(folder, "cifar_resnet8", method)
        self.other = packed(folder, "test_resnet", method)
        self.target = folder / "damaged.safetensors"
        self.images = torch.rand(2, *SHAPE[1:])
        self.saved = load_packed(self.path)
        self.logits = outputs(self.saved, self.images)

    def check(self, seed: int) -> str:
        """Refused by a named error, or equal to what was saved."""
        signed = mutated(self.path, self.other, self.target, seed)
        with watching() as events:
            try:
                net = load_packed(self.target)
            except MultiQuantError as error:
                assert not events
                return type(error).__name__
        assert not events
        logits = outputs(net, self.images)
        if signed:  # whoever can sign can write the file of another network, a whole one
            assert all(torch.isfinite(ours).all() for ours in logits)
            return "whole"
        assert net.config == self.saved.config
        assert all(
            torch.equal(ours, theirs) for ours, theirs in zip(logits, self.logits, strict=True)
        )
        return "equal"


@pytest.fixture(scope="module")
def damaged(tmp_path_factory: pytest.TempPathFactory) -> DamagedFiles:
    return DamagedFiles(tmp_path_factory.mktemp("fuzz"))


@pytest.mark.parametrize("tenth", range(10))
def test_damaged_files_are_refused_or_equal(tenth: int, damaged: DamagedFiles) -> None:
    answers = [damaged.check(seed) for seed in range(10 * tenth, 10 * tenth + 10)]
    assert "PackedFileError" in answers


@pytest.mark.parametrize("method", ["adabits", "double_rounding"])
def test_damaged_files_of_version_2(method: str, tmp_path: Path) -> None:
    """Their headers have more to damage, and arrays of more bits."""
    damaged = DamagedFiles(tmp_path, method)
    answers = [damaged.check(seed) for seed in range(30)]
    assert answers.count("PackedFileError") > 10
