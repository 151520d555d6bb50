"""One accelerator for every bit-width: the same layers, other threshold tables.

Weights never change with the bit-width. What does change, activations' bits, norms, ranges, and
which branches run, is all in the tables between two integers. So the network of the largest
bit-width, with all its branches, becomes any other by writing the other's tables into it:

* a table of fewer codes is padded, below with entries that every integer reaches and above with
  entries that none does;
* a branch that does not run adds the code 0.
"""

import torch
from torch import Tensor

from brevitas_multiquant.errors import FinnMappingError
from brevitas_multiquant.export.finn.integer_graph import (
    Convolution,
    IntegerGraph,
    Layer,
    Thresholds,
)

Tables = dict[str, Tensor]
"""Name of a template's threshold layer's output -> table (C, levels)."""


def table_set(template: IntegerGraph, graph: IntegerGraph) -> Tables:
    """The tables that turn the template into another bit-width's network.

    Args:
        template: the integer network of the largest bit-width, with all branches.
        graph: the integer network of the other.

    Raises:
        FinnMappingError: a convolution whose weights hardware would need with another sign at
            this bit-width.
    """
    own, places = _by_place(graph), _by_place(template)
    assert own.keys() <= places.keys(), "the template has all branches"
    _check_weights(template, graph.bits, own)
    tables = {}
    for place, layer in places.items():
        if isinstance(layer, Thresholds):
            table = own.get(place)
            tables[layer.output.name] = (
                _constant_zero(layer) if table is None else _padded(table, layer)
            )
    return tables


def _by_place(graph: IntegerGraph) -> dict[tuple[str, str, int], Layer]:
    """Layers by kind, module path, and how often the module was called before."""
    found: dict[tuple[str, str, int], Layer] = {}
    for layer in graph.layers:
        kind, calls = type(layer).__name__, 0
        while (kind, layer.where, calls) in found:
            calls += 1
        found[kind, layer.where, calls] = layer
    return found


def _check_weights(
    template: IntegerGraph, bits: int, own: dict[tuple[str, str, int], Layer]
) -> None:
    problems = []
    for place, layer in _by_place(template).items():
        other = own.get(place)
        if not isinstance(layer, Convolution) or not isinstance(other, Convolution):
            continue
        differs = (layer.weight != other.weight).flatten(1).any(1).nonzero().flatten().tolist()
        if differs:
            problems.append(
                (
                    layer.where,
                    f"the norm behind it has scales of another sign at {bits} bits than at "
                    f"{template.bits}, in the channels {differs}: train on with positive norm "
                    "scales, or export one project a bit-width (switchable=False)",
                )
            )
    if problems:
        raise FinnMappingError(bits, problems)


def _padded(table: Layer, layer: Thresholds) -> Tensor:
    """A table of fewer codes as one of the template's layer."""
    assert isinstance(table, Thresholds)
    source = layer.inputs[0]
    channels, levels = table.table.shape
    below = table.first_code - layer.first_code
    above = layer.table.shape[1] - levels - below
    always = torch.full((channels, below), float(source.lowest))
    never = torch.full((channels, above), float(source.highest + 1))
    return torch.cat([always, table.table, never], 1)


def _constant_zero(layer: Thresholds) -> Tensor:
    """A table that gives the code 0 for every integer."""
    source = layer.inputs[0]
    table = torch.full_like(layer.table, float(source.highest + 1))
    table[:, : -layer.first_code] = float(source.lowest)
    return table
