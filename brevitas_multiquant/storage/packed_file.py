"""The packed file as bytes: named flat arrays, a header, checksums of both.

safetensors holds the arrays. The header is JSON under the one key ``brevitas_multiquant`` of the
safetensors metadata (one key, so that equal networks give equal files): ``format``, ``version``,
what the writer puts into it, a SHA-256 of each array (``sha256``) and of the header itself
(``header_sha256``). Nothing is unpickled, and reading takes as much memory as the file is large.

Version 2 says of every layer how its weights are kept (``weights``); a file whose weights are all
of the two bits that version 1 knows is of version 1, and older releases read it. Version 3 says
what the network is for (``image_task``), and how weights are kept where that needs saying.
"""

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from brevitas_multiquant.core.packing import Array
from brevitas_multiquant.core.selection import is_whole
from brevitas_multiquant.errors import PackedFileError
from brevitas_multiquant.storage.foreign import (
    PACKED,
    kind_of,
    require_packed_file,
    without_header,
)

HEADER = "brevitas_multiquant"
FORMAT = "packed"
VERSION = 1
"""Of files with two-bit weights alone."""

VERSION_WITH_WEIGHTS = 2
"""Of files whose header tells how each layer's weights are kept."""

VERSION_WITH_TASK = 3
"""Of files that say what the network is for."""

HEADER_KEYS: Mapping[int, tuple[str, ...]] = {
    VERSION: ("config", "source", "input_shape"),
    VERSION_WITH_WEIGHTS: ("config", "source", "input_shape", "weights"),
    VERSION_WITH_TASK: ("config", "source", "input_shape", "image_task"),
}
"""Version -> what the header holds beside format, version and checksums."""

OPTIONAL_KEYS: Mapping[int, tuple[str, ...]] = {VERSION_WITH_TASK: ("weights",)}
"""Version -> what it may hold too; it holds nothing else."""

_OWN_KEYS = {"format", "version", "sha256"}
_DIGEST = "header_sha256"


def write_packed(path: Path, header: dict[str, Any], arrays: dict[str, Array]) -> Path:
    """Write arrays under a header; an older file is replaced once the new one is complete.

    Args:
        path: the file.
        header: plain values for JSON: the keys of one of the versions.
        arrays: flat, uint8 or float32.

    Raises:
        PackedFileError: a path that cannot be written; what was there stays.
    """
    (version,) = (version for version in HEADER_KEYS if _fits(version, set(header)))
    whole = {
        "format": FORMAT,
        "version": version,
        **header,
        "sha256": {key: _digest(array) for key, array in arrays.items()},
    }
    whole[_DIGEST] = _header_digest(whole)
    return _write_whole(path, save(arrays, {HEADER: json.dumps(whole)}))


def read_packed(path: Path) -> tuple[dict[str, Any], dict[str, Array]]:
    """Header and arrays of a file, everything checked that can be without knowing the network.

    Returns:
        The header, and by name flat arrays: uint8 codes, finite float32 of all else.

    Raises:
        PackedFileError: missing, not whole, of another format or version, or changed in any bit.
    """
    require_packed_file(path)
    try:
        with safe_open(path, "np") as file:
            names = sorted(file.keys())
            if HEADER not in (metadata := file.metadata() or {}):
                raise without_header(path, names)
            header = _checked_header(metadata, path)
            if names != sorted(header["sha256"]):
                raise PackedFileError(
                    f"{path}: expected the arrays {sorted(header['sha256'])}, got {names}"
                )
            arrays = {key: file.get_tensor(key) for key in names}
    except (SafetensorError, OSError, TypeError, AttributeError) as error:
        # the last two: a type that numpy does not have
        if kind := kind_of(path):
            raise PackedFileError(f"{path}: expected {PACKED}, got {kind}") from error
        raise PackedFileError(f"{path}: not a whole safetensors file: {error}") from error
    for key, array in arrays.items():
        _check_array(key, array, header["sha256"][key], path)
    return header, arrays


def _check_array(key: str, array: Array, digest: str, path: Path) -> None:
    kind = np.uint8 if key.endswith(".codes") else np.float32
    if array.dtype != kind or array.ndim != 1:
        raise PackedFileError(
            f"{path}: expected {key} to be a flat array of {kind.__name__}, got "
            f"{array.dtype} of shape {array.shape}"
        )
    if _digest(array) != digest:
        raise PackedFileError(f"{path}: {key} is damaged (its SHA-256 differs)")
    if kind is np.float32 and not np.isfinite(array).all():
        raise PackedFileError(f"{path}: expected finite numbers in {key}, got others")


def _checked_header(metadata: dict[str, str], path: Path) -> dict[str, Any]:
    try:
        header = json.loads(metadata[HEADER], parse_constant=_refuse_constant)
    except (KeyError, ValueError, RecursionError) as error:
        raise PackedFileError(f"{path}: no header of brevitas_multiquant in it") from error
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise PackedFileError(f"{path}: expected a header of the format {FORMAT!r}, got another")
    version: Any = header.get("version")
    if not is_whole(version) or version not in HEADER_KEYS:
        *others, last = map(str, HEADER_KEYS)
        known = f"{', '.join(others)} or {last}"
        raise PackedFileError(
            f"{path}: expected version {known} of the format, got {version!r}; "
            "install the release of brevitas_multiquant that wrote it"
        )
    # files of before the first release have no checksum of the header
    digest = header.pop(_DIGEST, None)
    if digest is not None and digest != _header_digest(header):
        raise PackedFileError(f"{path}: the header is damaged (its SHA-256 differs)")
    if not _fits(version, set(header) - _OWN_KEYS) or not set(header) >= _OWN_KEYS:
        keys = {*HEADER_KEYS[version], *_OWN_KEYS}
        raise PackedFileError(f"{path}: expected a header with the keys {sorted(keys)}")
    if not isinstance(header["sha256"], dict):
        raise PackedFileError(f"{path}: expected a checksum for each array, got none")
    return header


def _fits(version: int, keys: set[str]) -> bool:
    """Whether a header of a version has these keys, its own apart."""
    return keys - {*OPTIONAL_KEYS.get(version, ())} == {*HEADER_KEYS[version]}


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _header_digest(header: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(header, sort_keys=True).encode()).hexdigest()


def _digest(array: Array) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).data).hexdigest()


def _write_whole(path: Path, data: bytes) -> Path:
    """Write beside the target and rename, so that a reader sees the old file or the new one."""
    try:
        handle, beside = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(beside, 0o644)
            os.replace(beside, path)
        except BaseException:
            os.unlink(beside)
            raise
    except OSError as error:
        raise PackedFileError(f"save_packed: cannot write {path}: {error.strerror}") from error
    except ValueError as error:  # a zero byte in the name
        raise PackedFileError(f"save_packed: cannot write {str(path)!r}: {error}") from error
    return path
