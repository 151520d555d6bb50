"""Packed files taken apart and put together again, for tests that damage them.

Written from the description of the format, not with the package's own reader and writer.
"""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

KEY = "brevitas_multiquant"


def take_apart(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Header and arrays of a file."""
    with safe_open(path, "np") as file:
        header = json.loads(file.metadata()[KEY])
        return header, {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118


def put_together(path: Path, header: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
    """Write a file without any checksum of its own."""
    save_file(arrays, path, {KEY: json.dumps(header)})


def sign_arrays(header: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
    """Give a header the checksums of these arrays."""
    header["sha256"] = {k: hashlib.sha256(a.tobytes()).hexdigest() for k, a in arrays.items()}


def sign_header(header: dict[str, Any]) -> None:
    """Give a header its own checksum."""
    header.pop("header_sha256", None)
    text = json.dumps(header, sort_keys=True)
    header["header_sha256"] = hashlib.sha256(text.encode()).hexdigest()


def rewrite(
    path: Path, change: Callable[[dict, dict], object], signed: tuple[str, ...] = ("header",)
) -> None:
    """Write a file again after ``change(arrays, header)``, with the checksums in ``signed``."""
    header, arrays = take_apart(path)
    change(arrays, header)
    if "arrays" in signed:
        sign_arrays(header, arrays)
    if "header" in signed:
        sign_header(header)
    put_together(path, header, arrays)
