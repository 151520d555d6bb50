"""Which checkpoints a folder keeps: damaged ones never count, and never cost a good one."""

from pathlib import Path

import pytest
import torch

from brevitas_multiquant.recipes.errors import CheckpointError, OutputError
from brevitas_multiquant.recipes.results import checkpoints
from brevitas_multiquant.recipes.results.checkpoints import (
    SET_ASIDE,
    Checkpoint,
    checkpoint_path,
    checkpoints_in,
    latest_checkpoint,
    read_checkpoint,
    write_checkpoint,
)


@pytest.fixture(autouse=True)
def _new_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoints, "_WRITTEN", set())


def write(folder: Path, epoch: int, step: int = 0, keep: int = 9) -> Path:
    path = checkpoint_path(folder, epoch, step)
    write_checkpoint(path, Checkpoint({"x": torch.full((9,), float(epoch))}, {"at": epoch}), keep)
    return path


def bit_flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:20])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def a_folder(path: Path) -> None:
    """Cannot be read as a file, whatever the rights of who tries."""
    path.unlink()
    path.mkdir()


DAMAGE = [bit_flip, cut_short, empty, a_folder]


def resumed(folder: Path) -> int:
    """What a new process goes on from."""
    checkpoints._WRITTEN.clear()
    saved = latest_checkpoint(folder)
    assert saved is not None
    at: int = saved.values["at"]
    return at


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("keep", [1, 2, 3])
def test_the_next_save_keeps_a_good_one(damage, keep, tmp_path):
    """The damaged one is newer than what is resumed, and than what is saved next."""
    write(tmp_path, 1)
    damaged = write(tmp_path, 3)
    damage(damaged)
    assert resumed(tmp_path) == 1
    saved = write(tmp_path, 2, keep=keep)
    assert saved in checkpoints_in(tmp_path)
    assert resumed(tmp_path) == 2
    whole = [read_checkpoint(path).values["at"] for path in checkpoints_in(tmp_path)]
    assert whole == [1, 2][-keep:]
    assert damaged.with_name(damaged.name + SET_ASIDE).exists()


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("which", [0, 1])
def test_a_damaged_one_among_older_ones_does_not_count(damage, which, tmp_path):
    paths = [write(tmp_path, epoch) for epoch in (1, 2)]
    damage(paths[which])
    write(tmp_path, 3)
    resumed(tmp_path)
    write(tmp_path, 4, keep=3)
    kept = [read_checkpoint(path).values["at"] for path in checkpoints_in(tmp_path)]
    assert kept == [2 - which, 3, 4]


def test_saved_where_the_damaged_one_was(tmp_path):
    write(tmp_path, 1)
    cut_short(write(tmp_path, 2))
    assert resumed(tmp_path) == 1
    write(tmp_path, 2, keep=1)
    assert resumed(tmp_path) == 2
    assert len(list(tmp_path.iterdir())) == 1


def test_whole_ones_of_a_time_that_was_left(tmp_path):
    """Unreadable when the run was resumed, readable again now: the run went on elsewhere."""
    write(tmp_path, 1)
    later = write(tmp_path, 5)
    write(tmp_path, 2, keep=1)
    assert [path.name for path in checkpoints_in(tmp_path)] == [
        "checkpoint-0002-0000000.safetensors"
    ]
    assert read_checkpoint(later.with_name(later.name + SET_ASIDE)).values["at"] == 5


def test_history_of_a_healthy_run(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints, "read_checkpoint", None)  # it reads none of its own
    for epoch in range(1, 6):
        write(tmp_path, epoch, keep=2)
    names = [path.name for path in sorted(tmp_path.iterdir())]
    assert names == [checkpoint_path(tmp_path, epoch, 0).name for epoch in (4, 5)]


def test_a_failed_write_removes_nothing(tmp_path, monkeypatch):
    paths = [write(tmp_path, epoch) for epoch in (1, 2)]

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoints, "save_file", full)
    with pytest.raises(OutputError, match="No space left"):
        write(tmp_path, 3, keep=1)
    assert sorted(tmp_path.iterdir()) == paths


def test_all_damaged(tmp_path):
    for epoch in (1, 2):
        empty(write(tmp_path, epoch))
    with pytest.raises(CheckpointError, match="all of the 2 checkpoints"):
        latest_checkpoint(tmp_path)
    assert len(checkpoints_in(tmp_path)) == 2  # looking changes nothing
