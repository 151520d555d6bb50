"""Checkpoint files: safetensors and JSON, never pickle; written aside, synced, then renamed.

A file either is not there or is whole, whenever the run is killed. Each carries a checksum, and
the newest one that passes it is the one a run resumes from. What cannot be read never counts as one
of those to keep: it is renamed, so that nobody takes it for a checkpoint, and left to its owner.
"""

import json
import os
import sys
import zlib
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from brevitas_multiquant.recipes.errors import CheckpointError, MissingFileError, OutputError

PATTERN = "checkpoint-*.safetensors"
VERSION = 1
PARTIAL = ".partial"
SET_ASIDE = ".damaged"


@dataclass(frozen=True)
class Checkpoint:
    """What a run needs to go on: tensors by name, and values that JSON can hold."""

    tensors: Mapping[str, Tensor]
    values: Mapping[str, Any]

    def below(self, prefix: str) -> dict[str, Tensor]:
        """The tensors whose names start with ``prefix``, without it."""
        named = self.tensors.items()
        return {k.removeprefix(prefix): v for k, v in named if k.startswith(prefix)}


def checkpoint_path(folder: Path, epoch: int, step: int) -> Path:
    """Where the state after ``step`` updates of an epoch goes; names sort as time does.

    Example:
        >>> checkpoint_path(Path("run"), 3, 0).name
        'checkpoint-0003-0000000.safetensors'
    """
    return folder / f"checkpoint-{epoch:04d}-{step:07d}.safetensors"


def write_checkpoint(path: Path, checkpoint: Checkpoint, keep: int) -> None:
    """Write a checkpoint, then remove all but it and the ``keep - 1`` whole ones before it.

    Those of a later time are of a run that could not be resumed from them: they are set aside.

    Raises:
        OutputError: it cannot be written; older ones stay.
    """
    values = json.dumps(dict(checkpoint.values))
    copies = _copies(checkpoint.tensors)
    metadata = {"version": str(VERSION), "values": values, "crc32": _crc32(copies, values)}
    _write(path, copies, metadata)
    _WRITTEN.add(path.absolute())
    _tidy(path, keep)


_WRITTEN: set[Path] = set()
"""Checkpoints that this process wrote and need not read again."""


def _tidy(newest: Path, keep: int) -> None:
    others = [path for path in checkpoints_in(newest.parent) if path != newest]
    kept = 1
    for path in reversed(others):
        if path.name > newest.name:
            _set_aside(path)
        elif kept >= keep:
            _remove(path)
        elif path.absolute() in _WRITTEN or _is_whole(path):
            kept += 1
        else:
            _set_aside(path)


def _is_whole(path: Path) -> bool:
    try:
        read_checkpoint(path)
    except CheckpointError:
        return False
    return True


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError:  # no reason to end a training
        _set_aside(path)


def _set_aside(path: Path) -> None:
    with suppress(OSError):  # then it stays, and is passed over
        path.replace(path.with_name(path.name + SET_ASIDE))
        print(f"warning: {path} is set aside as {path.name}{SET_ASIDE}", file=sys.stderr)


def read_checkpoint(path: Path) -> Checkpoint:
    """What `write_checkpoint` wrote.

    Raises:
        CheckpointError: it is damaged, or of another version.
    """
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            metadata = file.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: expected a checkpoint, cannot read it: {error}") from None
    if metadata.get("version") != str(VERSION):
        raise CheckpointError(
            f"{path}: expected a checkpoint of version {VERSION}, got {metadata.get('version')}"
        )
    values = metadata.get("values", "")
    if metadata.get("crc32") != _crc32(tensors, values):
        raise CheckpointError(f"{path}: expected its checksum to fit, but the file is damaged")
    return Checkpoint(tensors, json.loads(values))


def checkpoints_in(folder: Path) -> list[Path]:
    """The checkpoints of a run, oldest first."""
    return sorted(folder.glob(PATTERN))


def latest_checkpoint(folder: Path) -> Checkpoint | None:
    """The newest checkpoint that is whole, None where there is none yet; names damaged ones.

    Raises:
        MissingFileError: there is no such folder.
        CheckpointError: there are checkpoints, and all are damaged.
    """
    if not folder.is_dir():
        raise MissingFileError(f"--resume: expected the folder of a run at {folder}, found none")
    paths = checkpoints_in(folder)
    for path in reversed(paths):
        try:
            return read_checkpoint(path)
        except CheckpointError as error:
            print(f"warning: {error}; trying the one before", file=sys.stderr)
    if paths:
        raise CheckpointError(f"--resume: all of the {len(paths)} checkpoints in {folder} damaged")
    return None


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write a plain safetensors file that replaces a former one at once.

    Raises:
        OutputError: it cannot be written.
    """
    _write(path, _copies(tensors), None)


def _write(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None) -> None:
    aside = path.with_name(path.name + PARTIAL)
    try:
        save_file(tensors, aside, metadata)
        with open(aside, "r+b") as file:  # Windows syncs handles that can be written alone
            os.fsync(file.fileno())
        os.replace(aside, path)
    except (OSError, SafetensorError) as error:
        aside.unlink(missing_ok=True)
        raise OutputError(f"{path}: cannot write it: {error}") from None


def _copies(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous ones in main memory; copies, as safetensors refuses tensors that share memory."""
    return {
        name: value.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, value in tensors.items()
    }


def _crc32(tensors: Mapping[str, Tensor], values: str) -> str:
    checksum = zlib.crc32(values.encode())
    for name in sorted(tensors):
        checksum = zlib.crc32(name.encode(), checksum)
        checksum = zlib.crc32(tensors[name].reshape(-1).view(torch.uint8).numpy().data, checksum)
    return str(checksum)
