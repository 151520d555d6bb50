"""A folder gets all files of an export or none, whatever fails and when."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from brevitas_multiquant import ModelSource, MultiQuantNet, save_packed
from brevitas_multiquant.errors import ExportError, PackedFileError
from brevitas_multiquant.storage.hub import WEIGHTS
from brevitas_multiquant.storage.model_card import CONFIG
from brevitas_multiquant.storage.staging import staged


def snapshot(folder: Path) -> dict[str, bytes | str | None]:
    """Every path below a folder -> bytes of a file, target of a link, None for a folder."""
    return {
        str(path.relative_to(folder)): os.readlink(path)
        if path.is_symlink()
        else None
        if path.is_dir()
        else path.read_bytes()
        for path in sorted(folder.rglob("*"))
    }


def write(staging: Path) -> None:
    for name in ("a.txt", "b.txt", "project/inner.txt", "z.txt"):
        (staging / name).parent.mkdir(exist_ok=True)
        (staging / name).write_text(f"new {name}")


def fill(target: Path) -> None:
    """A target with something of every kind, some of it to be replaced."""
    (target / "project" / "deep").mkdir(parents=True)
    (target / "project" / "deep" / "old.txt").write_text("old")
    (target / "a.txt").write_text("old a")
    (target / "z.txt").symlink_to("a.txt")
    (target / "mine.txt").write_text("mine")


def test_all_files(tmp_path: Path) -> None:
    fill(tmp_path)
    with staged(tmp_path) as staging:
        write(staging)
    assert snapshot(tmp_path) == {
        "a.txt": b"new a.txt",
        "b.txt": b"new b.txt",
        "mine.txt": b"mine",
        "project": None,
        "project/inner.txt": b"new project/inner.txt",
        "z.txt": b"new z.txt",
    }


@pytest.mark.parametrize("name", ["a.txt", "b.txt", "z.txt", "project"])
def test_a_clash_of_file_and_folder(name: str, tmp_path: Path) -> None:
    """Found before the first file moves, whichever it is."""
    if name == "project":
        (tmp_path / name).write_text("a file")
    else:
        (tmp_path / name).mkdir()
        (tmp_path / name / "kept.txt").write_text("kept")
    if name != "a.txt":
        (tmp_path / "a.txt").write_text("old a")
    before = snapshot(tmp_path)
    message = rf"{name}, but a (file|folder) of that name"
    with pytest.raises(ExportError, match=message), staged(tmp_path) as staging:
        write(staging)
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("links", [True, False], ids=["links", "no links"])
@pytest.mark.parametrize("filled", [True, False], ids=["filled", "empty"])
@pytest.mark.parametrize("failing", [0, 1, 2, 3])
@pytest.mark.parametrize("error", [OSError(28, "No space left"), KeyboardInterrupt()], ids=str)
def test_a_move_that_fails(
    error: BaseException,
    failing: int,
    filled: bool,
    links: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    target = tmp_path / "out"
    if filled:
        fill(target)
    before = snapshot(tmp_path)
    name = ["a.txt", "b.txt", "project", "z.txt"][failing]
    replace = Path.replace

    def fails_once(path: Path, to: Path) -> Path:
        if path.name == name and path.parent.name.startswith(".export-") and to.parent == target:
            raise error
        return replace(path, to)

    def no_links(*_: object, **__: object) -> None:
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr(Path, "replace", fails_once)
    if not links:
        monkeypatch.setattr(os, "link", no_links)
    expected = ExportError if isinstance(error, OSError) else KeyboardInterrupt
    with pytest.raises(expected), staged(target) as staging:
        write(staging)
    assert snapshot(tmp_path) == before


def test_an_error_in_the_block(tmp_path: Path) -> None:
    fill(tmp_path)
    before = snapshot(tmp_path)
    with pytest.raises(ZeroDivisionError), staged(tmp_path) as staging:
        write(staging)
        1 / 0  # noqa: B018
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("name", [WEIGHTS, CONFIG])
def test_save_pretrained(name: str, net: MultiQuantNet, tmp_path: Path) -> None:
    net.source = ModelSource("own", "TinyNet")
    net.save_pretrained(tmp_path)
    (tmp_path / name).unlink()
    (tmp_path / name).mkdir()
    (tmp_path / name / "kept.txt").write_text("kept")
    before = snapshot(tmp_path)
    with pytest.raises(ExportError, match=f"{name}, but a folder of that name is there"):
        net.save_pretrained(tmp_path)
    assert snapshot(tmp_path) == before


TAKEN: dict[str, Callable[[Path], object]] = {
    "a folder": Path.mkdir,
    "a folder with a file": lambda path: (path.mkdir(), (path / "kept.txt").write_text("kept")),
}


@pytest.mark.parametrize("kind", TAKEN)
def test_a_packed_file_in_place_of_a_folder(kind: str, net: MultiQuantNet, tmp_path: Path) -> None:
    net.source = ModelSource("own", "TinyNet")
    path = tmp_path / "net.safetensors"
    TAKEN[kind](path)
    before = snapshot(tmp_path)
    with pytest.raises(PackedFileError, match=r"cannot write .*net\.safetensors: Is a directory"):
        save_packed(net, path)
    assert snapshot(tmp_path) == before
