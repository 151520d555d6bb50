"""The bits of a site as tensors: what a compiled graph reads, so that it serves any assignment."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from brevitas_multiquant.core.devices import widest_float


class Told(NamedTuple):
    """What a dial shows, for a graph.

    Args:
        weight: (1,), whole: bits of the weights that read the site.
        levels: a scalar in fp32: the largest code of its activations.
        widest: the most bits that these can have in the network.
    """

    weight: Tensor
    levels: Tensor
    widest: int


def told_by(dial: Any) -> Told | None:
    """What a dial tells the graph that is compiled now; None where Python reads the dial."""
    if dial is None or not torch.compiler.is_compiling():
        return None
    told: Told | None = dial.told
    return told


def row_at(rows: Sequence[Any], index: Tensor) -> Tensor:
    """One of some rows of numbers, by an index that a graph does not know.

    Args:
        rows: numbers, or lists of as many numbers each.
        index: (1,), whole.

    Example:
        >>> row_at([[1, 2], [3, 4]], torch.tensor([1]))
        tensor([3, 4])
    """
    real = any(isinstance(row, float) for row in rows)
    kind = widest_float(index.device) if real else None
    return torch.tensor(rows, dtype=kind, device=index.device).index_select(0, index)[0]
