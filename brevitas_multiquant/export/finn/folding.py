"""Folding files: parallelism that somebody edited in a project, to write the project with again."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from brevitas_multiquant.core.precision import Setting, name_of
from brevitas_multiquant.cost import luts
from brevitas_multiquant.cost.luts import Node
from brevitas_multiquant.errors import ExportError, HardwareError, did_you_mean
from brevitas_multiquant.export.finn.integer_graph import IntegerGraph
from brevitas_multiquant.export.finn.layer_names import layer_names
from brevitas_multiquant.export.finn.target import Target

Folding = str | os.PathLike[str] | Mapping[Setting, str | os.PathLike[str]]
"""A file, or one for each bit-width and assignment."""
NONE: dict[str, Any] = {"Defaults": {}}
"""The file of a project whose folding FINN decides."""

_OF_CHANNELS, _OF_INPUTS = {"PE": "pe"}, {"SIMD": "pe"}
_OF_PRODUCTS = {"PE": "pe", "SIMD": "simd", "ram_style": "ram_style", "mem_mode": "mem_mode"}
ATTRIBUTES: dict[type[Node], dict[str, str]] = {
    luts.MatrixProduct: _OF_PRODUCTS,
    luts.DepthwiseProduct: _OF_PRODUCTS,
    luts.Thresholds: {
        **_OF_CHANNELS,
        "depth_trigger_bram": "bram_from",
        "depth_trigger_uram": "uram_from",
    },
    luts.Window: {"SIMD": "simd", "parallel_window": "parallel", "ram_style": "ram_style"},
    **dict.fromkeys((luts.Padding, luts.Upsampling, luts.Concatenation), _OF_INPUTS),
    **dict.fromkeys((luts.Addition, luts.Duplication, luts.PositionSum, luts.Pool), _OF_CHANNELS),
}
"""Layer -> FINN's attribute, and ours, of those that resources depend on."""
UNCOUNTED = (
    *("ram_style", "mem_mode", "resType", "mac_resource", "runtime_writeable_weights"),
    *("ram_style_thresholds", "ram_style_mask", "EmbFold", "SeqFold", "depth", "impl_style"),
    *("inFIFODepths", "outFIFODepths", "preferred_impl_style", "slr", "mem_port"),
)
"""What FINN's files may say beside, and is passed on to FINN without being counted."""


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


def as_folded(
    graph: IntegerGraph, target: Target, folding: Mapping[str, Mapping[str, Any]] = NONE
) -> tuple[Node, ...]:
    """The layers of hardware of an integer network with a folding file, as FINN applies it.

    Args:
        graph: of `brevitas_multiquant.export.finn.lower.lower`.
        target: the board, and what layers are folded for that the file does not name.
        folding: layer -> its attributes.

    Raises:
        ExportError: a name of no layer, or an attribute or a value that its layer cannot have.
    """
    layers = target.layers(graph)
    names = layer_names(graph, layers, target.board.dsp)
    if unknown := [name for name in folding if name not in ("Defaults", *names)]:
        raise ExportError(f"folding: expected layers of {names}, got {unknown}")
    defaults = folding.get("Defaults", {})
    for name, node in zip(names, layers, strict=True):
        _require_known(name, folding.get(name, {}), ATTRIBUTES[type(node)])
    return tuple(
        _changed(name, node, {**_of_all(defaults, name), **folding.get(name, {})})
        for name, node in zip(names, layers, strict=True)
    )


def _require_known(name: str, given: Mapping[str, Any], counted: Mapping[str, str]) -> None:
    """Refuse attributes that FINN's layer does not have."""
    known = list(dict.fromkeys((*counted, *UNCOUNTED)))
    for attribute in given:
        if attribute not in known:
            raise ExportError(
                f"folding: {name}: expected attributes among {known}, "
                f"got {attribute!r}{did_you_mean(attribute, counted)}"
            )


def _of_all(defaults: Mapping[str, Sequence[Any]], name: str) -> dict[str, Any]:
    """What ``Defaults`` say of a layer: attribute -> value, kinds or ``"all"``, and again."""
    kind = name.rpartition("_")[0]
    for attribute, pairs in defaults.items():
        if not isinstance(pairs, list) or len(pairs) % 2:
            raise ExportError(
                f"folding: Defaults: {attribute}: expected [value, kinds of layers, ...], got "
                f"{pairs!r}"
            )
    return {
        attribute: value
        for attribute, pairs in defaults.items()
        for value, kinds in zip(pairs[::2], pairs[1::2], strict=True)
        if kinds == "all" or kind in kinds
    }


def _changed(name: str, node: Node, attributes: Mapping[str, Any]) -> Node:
    ours = ATTRIBUTES[type(node)]
    changes = {ours[one]: value for one, value in attributes.items() if one in ours}
    if "parallel" in changes:
        changes["parallel"] = bool(changes["parallel"])
    try:
        return replace(node, **changes)
    except HardwareError as error:
        raise ExportError(f"folding: {name}: {error}") from error
