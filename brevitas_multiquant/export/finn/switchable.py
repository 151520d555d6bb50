"""One accelerator for every bit-width: the same layers, other threshold tables.

Weights never change with the bit-width. What does change, activations' bits, norms, ranges, and
which branches run, is all in the tables between two integers. So the network of the largest
bit-width, with all its branches, becomes any other, and that of any assignment of bits to sites, by
writing the other's tables into it:

* a table of fewer codes is padded, below with entries that every integer reaches and above with
  entries that none does;
* a branch that does not run adds the code 0;
* a branch that runs at half gives the code 0 in every channel that the half branch does not have:
  what the others add up to is the half branch. Since all branches read the same codes of the stem,
  it has one more table in front, its *gate*, which gives the codes as they are or 0.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from typing import TypeVar

import torch
from torch import Tensor

from brevitas_multiquant.core.selection import BranchUse, Selection, uses_at
from brevitas_multiquant.errors import FinnMappingError
from brevitas_multiquant.export.finn.check import branch_name
from brevitas_multiquant.export.finn.integer_graph import (
    ChannelPick,
    ChannelSlice,
    Concatenation,
    Convolution,
    IntegerGraph,
    Layer,
    Stream,
    Thresholds,
)

Tables = dict[str, Tensor]
"""Name of a template's threshold layer's output -> table (C, levels)."""


Key = TypeVar("Key")


def with_gates(graphs: Mapping[Key, IntegerGraph], selection: Selection) -> dict[Key, IntegerGraph]:
    """The networks of all settings, gates in front of the branches that some run at half.

    Args:
        graphs: bit-width, or anything else -> integer network; that of the largest bit-width is
            the template.
        selection: of the network.

    Raises:
        FinnMappingError: the template has only half of a branch that another runs whole.
    """
    largest = max(graph.bits for graph in graphs.values())
    widths = {use.index: use.width for use in uses_at(selection, largest)}
    uses = {key: uses_at(selection, graph.bits) for key, graph in graphs.items()}
    others = {use for some in uses.values() for use in some if use.index in widths}
    if wider := sorted({use.index for use in others if use.width > widths[use.index]}):
        advice = (
            f"runs at half at {largest} bits, whole at others, and the accelerator has the layers "
            f"of {largest} bits: build the network for {largest + 1} bits too, or export one "
            "project per bit-width (switchable=False)"
        )
        raise FinnMappingError(f"{largest} bits", [(branch_name(index), advice) for index in wider])
    narrower = {use for use in others if use.width < widths[use.index]}
    return {key: _with_gates(graph, uses[key], narrower) for key, graph in graphs.items()}


def _with_gates(
    graph: IntegerGraph, uses: Iterable[BranchUse], narrower: Collection[BranchUse]
) -> IntegerGraph:
    gated = {use.index for use in narrower}
    for use in sorted(uses, key=lambda use: use.index):
        if use.index in gated:
            graph = _with_gate(graph, use.index, use in narrower)
    return graph


def _with_gate(graph: IntegerGraph, index: int, is_half: bool) -> IntegerGraph:
    """A table that changes nothing, between the codes that a branch reads and all who read them."""
    branch = branch_name(index)
    inside = [layer for layer in graph.layers if layer.where.startswith(f"{branch}.")]
    first = inside[0]
    cut = is_half and isinstance(first, ChannelSlice)
    codes = first.output if cut else first.inputs[0]
    gated = Stream(f"gate_{index}", codes.shape, codes.lowest, codes.highest)
    steps = torch.arange(1.0, codes.highest + 1).expand(codes.shape[0], -1)
    gate = Thresholds(f"{branch}.gate", (codes,), gated, steps, 0, codes.highest.bit_length())
    layers = [_reading(layer, codes, gated) if layer in inside else layer for layer in graph.layers]
    layers.insert(graph.layers.index(first) + cut, gate)
    return replace(graph, layers=layers)


def _reading(layer: Layer, before: Stream, now: Stream) -> Layer:
    return replace(
        layer, inputs=tuple(now if stream is before else stream for stream in layer.inputs)
    )


def table_set(template: IntegerGraph, graph: IntegerGraph) -> Tables:
    """The tables that turn the template into another bit-width's network.

    Args:
        template: the integer network of the largest bit-width, with all branches.
        graph: the integer network of the other; both of `with_gates`.

    Raises:
        FinnMappingError: a convolution whose weights are others at this bit-width, or whose
            hardware would need them with another sign; channels put together in another way; codes
            that fall at this bit-width alone, or by more.
    """
    own, places = _by_place(graph), _by_place(template)
    problems = [*_other_weights(template, graph.bits, own), *_other_layers(template, graph)]
    if problems:
        raise FinnMappingError(f"{graph.bits} bits", problems)
    return {
        layer.output.name: _table_of(own.get(place), layer)
        for place, layer in places.items()
        if isinstance(layer, Thresholds)
    }


def _by_place(graph: IntegerGraph) -> dict[tuple[str, str, int], Layer]:
    """Layers by kind, module path, and how often the module was called before.

    Except those that cut channels off: a half branch's gate does so in the template.
    """
    found: dict[tuple[str, str, int], Layer] = {}
    for layer in graph.layers:
        if isinstance(layer, ChannelSlice):
            continue
        kind, calls = type(layer).__name__, 0
        while (kind, layer.where, calls) in found:
            calls += 1
        found[kind, layer.where, calls] = layer
    return found


def _other_weights(
    template: IntegerGraph, bits: int, own: dict[tuple[str, str, int], Layer]
) -> Iterable[tuple[str, str]]:
    for place, layer in _by_place(template).items():
        other = own.get(place)
        if not isinstance(layer, Convolution) or not isinstance(other, Convolution):
            continue
        outputs, inputs = other.weight.shape[:2]
        kept = layer.weight[:outputs, :inputs]
        differs = (kept != other.weight).flatten(1).any(1).nonzero().flatten().tolist()
        if differs:
            only_signs = torch.equal(kept.abs(), other.weight.abs())
            advice = _OTHER_SIGNS if only_signs else _OTHER_WEIGHTS
            numbers = {"bits": bits, "template": template.bits, "channels": differs}
            yield layer.where, advice.format(**numbers)


ONE_EACH = "export one project per bit-width (switchable=False)"


def _other_layers(template: IntegerGraph, graph: IntegerGraph) -> Iterable[tuple[str, str]]:
    """What the template's layers cannot be, whatever is in their tables."""
    places = _by_place(template)
    for place, layer in _by_place(graph).items():
        there = places.get(place)
        if isinstance(layer, (Concatenation, ChannelPick)):
            if there is None or there.output.shape != layer.output.shape:
                yield layer.where, f"a half branch puts other channels together: {ONE_EACH}"
        elif isinstance(layer, Thresholds):
            fits = isinstance(there, Thresholds) and min(_room(layer, there)) >= 0
            if not fits:
                yield (
                    layer.where,
                    f"its codes fall at {graph.bits} bits and not at {template.bits}, or further: "
                    f"train on with positive norm scales, or {ONE_EACH}",
                )


def _room(own: Thresholds, layer: Thresholds) -> tuple[int, int]:
    """Entries that the template's table has below and above another's."""
    below = own.first_code - layer.first_code
    return below, layer.table.shape[1] - own.table.shape[1] - below


_OTHER_SIGNS = (
    "the norm behind it has scales of another sign at {bits} bits than at {template}, in the "
    "channels {channels}: train on with positive norm scales, or export one project per bit-width "
    "(switchable=False)"
)
_OTHER_WEIGHTS = (
    "its weights follow the bit-width and are other integers at {bits} bits than at {template}, "
    "which tables alone do not change: export one project per bit-width (switchable=False)"
)


def _table_of(own: Layer | None, layer: Thresholds) -> Tensor:
    """What the template's layer holds to be another bit-width's; 0 in channels that it has not."""
    table = _constant_zero(layer)
    if own is not None:
        assert isinstance(own, Thresholds)
        table[: len(own.table)] = _padded(own, layer)
    return table


def _padded(own: Thresholds, layer: Thresholds) -> Tensor:
    """A table of fewer codes as one of the template's layer."""
    source = layer.inputs[0]
    channels = len(own.table)
    below, above = _room(own, layer)
    always = torch.full((channels, below), float(source.lowest))
    never = torch.full((channels, above), float(source.highest + 1))
    return torch.cat([always, own.table, never], 1)


def _constant_zero(layer: Thresholds) -> Tensor:
    """A table that gives the code 0 for every integer."""
    source = layer.inputs[0]
    table = torch.full_like(layer.table, float(source.highest + 1))
    table[:, : -layer.first_code] = float(source.lowest)
    return table
