"""Layers of FINN's graphs as nodes of `brevitas_multiquant.cost.luts`, for `finn_rules.py`."""

import json
from collections.abc import Callable
from dataclasses import asdict, fields
from math import prod
from typing import Any

from brevitas_multiquant.cost import luts


def as_node(row: dict[str, Any]) -> luts.Node:
    """A layer of FINN's graph as a node of the rules."""
    kind = row["op"].removesuffix("_rtl").removesuffix("_hls")
    return _NODES[kind](row["attributes"], row["types"])


def _bits(types: list[Any], index: int) -> int:
    return int(types[index][1])


def _product_fields(at: dict[str, Any], types: list[Any]) -> dict[str, Any]:
    return {
        "weight_bits": _bits(types, 1),
        "activation_bits": _bits(types, 0),
        "accumulator_bits": _bits(types, 2),
        "signed_activations": types[0][2] < 0,
        "signed_weights": types[1][2] < 0,
        "pe": at["PE"],
        "simd": at["SIMD"],
        "ram_style": at["ram_style"],
        "mem_mode": at["mem_mode"],
    }


def _matrix_product(at: dict[str, Any], types: list[Any]) -> luts.Node:
    shape = (at["MW"], at["MH"], prod(at["numInputVectors"]))
    return luts.MatrixProduct(*shape, narrow=True, **_product_fields(at, types))


def _depthwise_product(at: dict[str, Any], types: list[Any]) -> luts.Node:
    shape = (at["Channels"], tuple(at["Kernel"]), prod(at["Dim"]))
    return luts.DepthwiseProduct(*shape, **_product_fields(at, types))


def _threshold_layer(at: dict[str, Any], types: list[Any]) -> luts.Node:
    return luts.Thresholds(
        *(at["NumChannels"], prod(at["numInputVectors"]), _bits(types, 1), _bits(types, 2)),
        pe=at["PE"],
        bram_from=at["depth_trigger_bram"],
        uram_from=at["depth_trigger_uram"],
    )


def _window(at: dict[str, Any], types: list[Any]) -> luts.Node:
    return luts.Window(
        *(at["IFMChannels"], tuple(at["IFMDim"]), tuple(at["ConvKernelDim"]), _bits(types, 0)),
        stride=tuple(at["Stride"]),
        dilation=tuple(at["Dilation"]),
        depthwise=bool(at["depthwise"]),
        simd=at["SIMD"],
        parallel=bool(at["parallel_window"]),
        ram_style=at["ram_style"],
    )


def _padding(at: dict[str, Any], types: list[Any]) -> luts.Node:
    (height, width), (top, left, bottom, right) = at["ImgDim"], at["Padding"]
    positions = (height + top + bottom) * (width + left + right)
    return luts.Padding(at["NumChannels"], positions, at["SIMD"])


def _pool(at: dict[str, Any], types: list[Any]) -> luts.Node:
    kernel, positions = tuple(at["KernelSize"]), prod(at["OutImgDims"])
    return luts.Pool(at["Channels"], kernel, positions, at["PE"])


def _sum_of_two(at: dict[str, Any], types: list[Any]) -> luts.Node:
    *positions, channels = at["out_shape"]
    return luts.Addition(channels, prod(positions), at["PE"])


def _copy(at: dict[str, Any], types: list[Any]) -> luts.Node:
    return luts.Duplication(at["NumChannels"], prod(at["numInputVectors"]), at["PE"])


def _sum_of_positions(at: dict[str, Any], types: list[Any]) -> luts.Node:
    return luts.PositionSum(at["NumChannels"], prod(at["numInputVectors"]), at["PE"])


_NODES: dict[str, Callable[[dict[str, Any], list[Any]], luts.Node]] = {
    "MVAU": _matrix_product,
    "VVAU": _depthwise_product,
    "Thresholding": _threshold_layer,
    "ConvolutionInputGenerator": _window,
    "FMPadding": _padding,
    "Pool": _pool,
    "ElementwiseAdd": _sum_of_two,
    "DuplicateStreams": _copy,
    "GlobalAccPool": _sum_of_positions,
}


def in_order(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The layers as FINN has them, depthwise windows right in front of what reads them."""
    made = {row["outputs"][0]: row for row in rows if row["attributes"].get("depthwise") == 1}
    ordered = []
    for row in rows:
        if row["outputs"][0] not in made:
            ordered += [made[row["inputs"][0]]] if row["inputs"][0] in made else []
            ordered.append(row)
    return ordered


def changed_fields(node: luts.Node) -> dict[str, Any]:
    """Fields that are not their defaults."""
    defaults = {field.name: field.default for field in fields(node)}
    return {name: value for name, value in asdict(node).items() if value != defaults[name]}


def entry(row: dict[str, Any]) -> dict[str, Any]:
    """One layer as it is stored: differences from the defaults, and what FINN says."""
    node, found = as_node(row), row["resources"]
    stored = {"kind": type(node).__name__, "fields": changed_fields(node), "cycles": row["cycles"]}
    stored["finn"] = [int(found[name]) for name in ("LUT", "BRAM_18K", "DSP", "URAM")]
    if "sums" in row:
        # of each output: the sum of its positive weights, that of its negative ones
        stored["weights"], stored["activations"] = row["sums"], row["types"][0][2:]
    if "table" in row:
        _, bits, smallest, _ = row["types"][0]
        stored["table"], stored["input"] = row["table"], [bits, smallest < 0]
    return stored


def as_text(contents: dict[str, Any]) -> str:
    """JSON with a line for each layer."""
    rows = contents.pop("layers")
    head = "".join(
        f"{json.dumps(name)}: {json.dumps(value)},\n" for name, value in contents.items()
    )
    lines = ",\n".join(json.dumps(row, separators=(",", ":")) for row in rows)
    return f'{{\n{head}"layers": [\n{lines}\n]\n}}\n'
