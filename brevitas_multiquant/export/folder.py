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
    After an error the target is as it was; a target that did not exist is gone again.

    Args:
        folder: the target; made if it does not exist.

    Raises:
        ExportError: a target that cannot be made or written.

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
        for path in sorted(staging.iterdir()):
            if path.is_dir() and (target / path.name).is_dir():
                shutil.rmtree(target / path.name)  # a rename replaces empty folders only
            path.replace(target / path.name)
    finally:
        shutil.rmtree(staging)
        _remove_empty(missing)


def _remove_empty(folders: list[Path]) -> None:
    for folder in folders:
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
