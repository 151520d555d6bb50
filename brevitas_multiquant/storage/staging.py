"""All files of an export, or none."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from brevitas_multiquant.errors import ExportError


@contextmanager
def staged(folder: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary folder whose files move into ``folder`` when the block ends without an error.

    It stands inside the target, hidden, so that moving a file is one rename on one file system.
    All files move or none: after an error, in the block or while moving, the target is as it was; a
    target that did not exist is gone again.

    Args:
        folder: the target; made if it does not exist.

    Raises:
        ExportError: a target that cannot be made or written, or that has a folder where a file
            goes, or the other way round.

    Example:
        >>> target = Path(tempfile.mkdtemp()) / "out"
        >>> with staged(target) as staging:
        ...     _ = (staging / "a.txt").write_text("a")
        >>> [path.name for path in target.iterdir()]
        ['a.txt']
    """
    target = Path(folder)
    missing = [path for path in (target, *target.parents) if not path.exists()]
    try:
        target.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=".export-", dir=target))
    except OSError as error:
        _remove_empty(missing)
        raise ExportError(
            f"export: expected a folder that can be written, got {target} ({error.strerror}); "
            "choose another folder or change its permissions"
        ) from error
    try:
        yield staging
        _refuse_clashes(staging, target)
        _move_all(staging, target)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
        _remove_empty(missing)


def _refuse_clashes(staging: Path, target: Path) -> None:
    """A file does not take the place of a folder, nor a folder that of a file."""
    for path in sorted(staging.iterdir()):
        there = target / path.name
        if os.path.lexists(there) and there.is_dir() != path.is_dir():
            kinds = ("a folder", "a file") if there.is_dir() else ("a file", "a folder")
            raise ExportError(
                f"export: expected to write {kinds[1]} {there}, but {kinds[0]} of that name is "
                "there; move it away or choose another folder. Nothing was changed"
            )


def _move_all(staging: Path, target: Path) -> None:
    """Move what is staged into the target; where one fails, put back what was there."""
    former = staging / ".former"
    former.mkdir()
    done: list[Path] = []
    names = sorted(path.name for path in staging.iterdir() if path != former)
    try:
        for name in names:
            _keep(target / name, former / name)
            done.append(target / name)
            (staging / name).replace(target / name)
    except BaseException as error:
        for there in reversed(done):
            _restore(there, former / there.name)
        if not isinstance(error, OSError):
            raise
        raise ExportError(
            f"export: expected to replace {target / name}, which failed ({error.strerror}); the "
            "folder is as it was: choose another one or change its permissions"
        ) from error


def _keep(there: Path, kept: Path) -> None:
    """Put aside what is to be replaced; a file stays until the new one takes its place at once."""
    if not os.path.lexists(there):
        return
    if there.is_dir() or there.is_symlink():
        there.replace(kept)
        return
    try:
        os.link(there, kept)
    except OSError:  # a file system without links
        shutil.copy2(there, kept)


def _restore(there: Path, kept: Path) -> None:
    if there.is_dir() and not there.is_symlink():
        shutil.rmtree(there)
    if os.path.lexists(kept):
        kept.replace(there)
    else:
        there.unlink(missing_ok=True)


def _remove_empty(folders: list[Path]) -> None:
    for folder in folders:
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
