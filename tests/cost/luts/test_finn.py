"""The rules against FINN's own report, layer by layer, as benchmarks/finn_rules.py keeps it."""

import json
from dataclasses import astuple, replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from brevitas_multiquant.cost import luts
from brevitas_multiquant.cost.luts.cycles import cycles

FILES = sorted((Path(__file__).parents[2] / "data" / "finn_rules").glob("*.json"))
NETWORKS = [path for path in FILES if path.stem != "layers"]


@cache
def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())


def node_of(entry: dict[str, Any]) -> luts.Node:
    """The layer that an entry describes."""
    pairs = {n: tuple(v) if isinstance(v, list) else v for n, v in entry["fields"].items()}
    return getattr(luts, entry["kind"])(**pairs)


def entries(path: Path) -> list[tuple[luts.Node, dict[str, Any]]]:
    return [(node_of(entry), entry) for entry in read(path)["layers"]]


def each(path: Path, name: str):
    """Layers of which something is known."""
    return [(node, entry) for node, entry in entries(path) if name in entry]


by_file = pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
by_network = pytest.mark.parametrize("path", NETWORKS, ids=lambda path: path.stem)


@by_file
def test_resources_of_every_layer_are_those_of_finn(path):
    contents = read(path)
    for node, entry in entries(path):
        board = luts.board_named(entry.get("board") or contents["board"])
        assert list(astuple(luts.resources(node, board.dsp))) == entry["finn"], node


@by_file
def test_cycles_of_every_layer_are_those_of_finn(path):
    for node, entry in each(path, "cycles"):
        assert cycles(node) == entry["cycles"], node


@by_network
def test_every_layer_is_as_parallel_as_finn_makes_it(path):
    contents = read(path)
    nodes = [node for node, _ in entries(path)]
    target = luts.target_cycles(contents["fps"], contents["clock_ns"])
    dsp = luts.board_named(contents["board"]).dsp
    assert luts.fold([luts.unfolded(node) for node in nodes], target, dsp) == tuple(nodes)


@by_network
def test_sums_are_as_wide_as_finn_makes_them(path):
    """An entry keeps the sums of positive and of negative weights: a row that gives the same."""
    last = read(path)["layers"][-1]
    for node, entry in each(path, "weights"):
        bits = luts.accumulator_bits(
            entry["weights"], *entry["activations"], whole_bytes=entry is last
        )
        assert bits == node.accumulator_bits, node


@by_network
def test_thresholds_are_as_wide_as_finn_makes_them(path):
    for node, entry in each(path, "table"):
        assert luts.threshold_bits(*entry["table"], *entry["input"]) == node.threshold_bits, node


def test_the_files_hold_what_they_are_for():
    """Every kind of layer, multipliers of both kinds, whole windows, and missed frame rates."""
    nodes = [node for path in NETWORKS for node, _ in entries(path)]
    assert len(NETWORKS) >= 20 and len(nodes) > 800
    kinds = {type(node).__name__ for path in FILES for node, _ in entries(path)}
    assert kinds == {
        *("Addition", "DepthwiseProduct", "Duplication", "MatrixProduct", "Padding", "Pool"),
        *("PositionSum", "Thresholds", "WidthConverter", "Window"),
    }
    found = [entry["finn"] for path in FILES for _, entry in entries(path)]
    assert all(any(one[index] for one in found) for index in range(4))
    windows = [node for node in nodes if isinstance(node, luts.Window)]
    assert {(node.depthwise, node.parallel) for node in windows} >= {
        *((False, False), (False, True), (True, False), (True, True)),
    }
    slowest = {path.stem: max(entry["cycles"] for _, entry in entries(path)) for path in NETWORKS}
    missed = [p for p in NETWORKS if slowest[p.stem] > luts.target_cycles(read(p)["fps"])]
    assert missed and len(missed) < len(NETWORKS)


def test_weights_of_a_convolution_give_its_layers():
    """The second convolution of ResNet-8: padding, window, product, thresholds."""
    (path,) = [path for path in NETWORKS if path.stem == "resnet8_w3a3"]
    nodes = [node for node, _ in entries(path)]
    start = next(
        index
        for index, node in enumerate(nodes)
        if isinstance(node, luts.Padding) and node.channels == 16
    )
    expected = nodes[start : start + 4]
    product, table = expected[2:]
    shape = luts.ConvolutionShape(16, 16, (32, 32), (3, 3), padding=(1, 1))
    layers = shape.layers(
        *(3, 3, table.output_bits),
        accumulator_bits=product.accumulator_bits,
        threshold_bits=table.threshold_bits,
    )
    assert luts.fold(layers, luts.target_cycles(1000)) == tuple(expected)


@by_network
def test_types_alone_never_give_fewer_bits_than_weights(path):
    for node, _ in entries(path):
        if isinstance(node, (luts.MatrixProduct, luts.DepthwiseProduct)):
            most = luts.largest_accumulator_bits(
                node.fan_in, node.weight_bits, node.activation_bits, node.signed_activations
            )
            wider = replace(node, accumulator_bits=most)
            assert node.accumulator_bits <= -(-most // 8) * 8
            assert luts.resources(wider).luts >= luts.resources(node).luts
