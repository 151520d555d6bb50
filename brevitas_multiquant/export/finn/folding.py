"""Folding files: parallelism that somebody edited in a project, to write the project with again."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from brevitas_multiquant.core.precision import Setting, name_of
from brevitas_multiquant.cost.luts import DepthwiseProduct, MatrixProduct, Node, Thresholds
from brevitas_multiquant.errors import ExportError

Folding = str | os.PathLike[str] | Mapping[Setting, str | os.PathLike[str]]
"""A file, or one for each bit-width and assignment."""
NONE: dict[str, Any] = {"Defaults": {}}
"""The file of a project whose folding FINN decides."""

KINDS: dict[str, type[Node]] = {
    "Thresholding": Thresholds,
    "MVAU": MatrixProduct,
    "VVAU": DepthwiseProduct,
}
"""FINN's layers whose LUTs beside its estimate are known, and what the rules call them."""


def read_foldings(
    folding: Folding | None, settings: Sequence[Setting]
) -> dict[Setting, dict[str, Any]]:
    """Contents of folding files, by bit-width or assignment.

    Args:
        folding: a file for the one bit-width, or a file for some of them.
        settings: what projects are written for.

    Raises:
        ExportError: one file for several projects, a bit-width without a project, or a file that
            is missing or holds something else than attributes of layers.
    """
    if folding is None:
        return {}
    names = [name_of(setting) for setting in settings]
    if not isinstance(folding, Mapping):
        if len(settings) > 1:
            raise ExportError(
                f"folding: expected a file for each of {names} as {{bits: file}}, since layers "
                f"differ, got one: {folding}"
            )
        folding = {settings[0]: folding}
    if unknown := [name_of(one) for one in folding if one not in settings]:
        raise ExportError(f"folding: expected files for {names}, got {unknown}")
    return {setting: _read(Path(path)) for setting, path in folding.items()}


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ExportError(
            f"folding: expected a folding_config.json of a project, got {path}: {error}"
        ) from error
    if not isinstance(found, dict) or not all(isinstance(one, dict) for one in found.values()):
        raise ExportError(
            f"folding: expected layers with their attributes, as in a project's "
            f"folding_config.json, got something else in {path}"
        )
    return {"Defaults": {}, **found}


def as_folded(layers: Sequence[Node], folding: Mapping[str, Mapping[str, Any]]) -> list[Node]:
    """Thresholds and products with the parallelism of a folding file.

    Args:
        layers: of one network, in FINN's order, of which others than `KINDS` are left out.
        folding: a complete file: every layer's name, in FINN's order, with its attributes.

    Raises:
        ExportError: the file has another number of layers of a kind.

    Example:
        >>> table = Thresholds(16, 1024, threshold_bits=12, output_bits=4)
        >>> as_folded([table], {"Thresholding_rtl_0": {"PE": 4}})[0].pe
        4
    """
    folded: list[Node] = []
    for kind, ours in KINDS.items():
        same = [node for node in layers if isinstance(node, ours)]
        given = [values for name, values in folding.items() if name.startswith(f"{kind}_")]
        if len(given) != len(same):
            raise ExportError(f"folding: expected {len(same)} layers {kind}, got {len(given)}")
        for node, values in zip(same, given, strict=True):
            names = {"PE": "pe", "SIMD": "simd"}
            changes = {names[one]: values[one] for one in names if one in values}
            folded.append(replace(node, **changes))
    return folded
