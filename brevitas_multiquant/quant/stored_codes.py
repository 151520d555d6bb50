"""The weights of a layer in a packed file: codes of as many bits as they need, or floats; and back.

A layer that runs at several bit-widths keeps the integers of the largest where the others follow
from them (`core.nesting`), and its float weights where they do not.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from brevitas_multiquant.core.clip_gradient import guarded_upper
from brevitas_multiquant.core.clip_quantize import quantize_weight
from brevitas_multiquant.core.grids import Grid
from brevitas_multiquant.core.nesting import integers_of, kept_grid
from brevitas_multiquant.core.packing import Array, pack, packed_size, unpack
from brevitas_multiquant.errors import PackedFileError
from brevitas_multiquant.quant.entries import FLOAT_BITS, Coding, Entry, fp32_numbers


def weight_entry(layer: Any, name: str, learned: Any) -> Entry:
    """The weights of a layer, as few bits as serve every bit-width at which it runs.

    Args:
        layer: a `CodeLayer`.
        name: of the layer.
        learned: the range of its weights, which has to be rebuilt before them.
    """
    kept = kept_grid(layer.weight_grids)
    return _floats(layer, name, learned) if kept is None else _codes(layer, name, learned, kept)


def _codes(layer: Any, name: str, learned: Any, kept: Grid) -> Entry:
    """The places of the integers in the grid that is kept."""
    count, bits = layer.weight.numel(), kept.place_bits

    def read() -> Array:
        weights, lower, upper = learned.placed(layer.effective_weight())
        integers = quantize_weight(weights, lower, upper, kept)
        places = (integers.reshape(-1).cpu() - kept.offset) / kept.step
        return pack(places.int().numpy(), bits)

    def write(packed: Array, trainable: bool) -> None:
        lower, upper = (bound.reshape(-1, 1) for bound in (learned.lower, learned.upper))
        values = _values(lower, guarded_upper(lower, upper), kept)
        _require_codes(name, values, (lower, upper), kept, layer.weight_grids)
        places = unpack(packed, bits, count)
        if places.max(initial=0) > kept.levels:
            raise PackedFileError(
                f"{name}: expected weight codes from 0 to {kept.levels} of the format "
                f"{kept.name}, got {places.max()}"
            )
        # Nothing is clipped, as anything larger was refused; it is the fast way to look up.
        rows = zip(values.numpy(), places.reshape(len(values), -1), strict=True)
        found = np.concatenate([np.take(row, own, mode="clip") for row, own in rows])
        become_plain(layer, torch.from_numpy(found), learned)

    coding = Coding(kept, count, bits, layer.weight_format)
    return Entry("codes", name, packed_size(count, bits), read, write, coding=coding)


def _floats(layer: Any, name: str, learned: Any) -> Entry:
    """The weights just before they are rounded: what every bit-width starts from.

    Where a function was between them and the parameters, no executor has to compute it again.
    """
    count, where = layer.weight.numel(), f"{name}.weight"
    finest = max(layer.weight_grids, key=lambda grid: grid.levels)

    def read() -> Array:
        values, _, _ = learned.placed(layer.effective_weight())
        return fp32_numbers(where, values)

    def write(values: Array, trainable: bool) -> None:
        become_plain(layer, torch.from_numpy(values.copy()), learned)

    coding = Coding(finest, count, FLOAT_BITS, layer.weight_format)
    return Entry("floats", where, count, read, write, coding=coding)


def _values(lower: Tensor, upper: Tensor, kept: Grid) -> Tensor:
    """A weight for each place of a grid, a row for each range: in the middle of its bin."""
    places = torch.arange(kept.levels + 1)
    floors = kept.rounding == "floor"
    position = (places + 0.5) / (kept.levels + 1) if floors else places / kept.levels
    return lower + (upper - lower) * position


def _require_codes(
    name: str, values: Tensor, bounds: tuple[Tensor, Tensor], kept: Grid, grids: Sequence[Grid]
) -> None:
    """Check that the weights of a file get its codes back, and at each bit-width their own.

    Raises:
        PackedFileError: the range is too narrow for its size, or too wide.
    """
    places = np.arange(kept.levels + 1)
    for grid in {kept, *grids}:
        expected = torch.from_numpy(integers_of(places, kept, grid)).to(values.dtype)
        codes = quantize_weight(values, *bounds, grid)
        if not torch.equal(codes, expected.expand_as(codes)):
            lower, upper = (bound.flatten().tolist() for bound in bounds)
            raise PackedFileError(f"{name}: the range ({lower}, {upper}) loses its codes")


def become_plain(layer: Any, weights: Tensor, learned: Any) -> None:
    """Take what a file has as the weights themselves: what computed them is in them now.

    Args:
        layer: a `CodeLayer`.
        weights: as many numbers as it has weights, within its range.
        learned: the range.
    """
    layer.weight.data = weights.view(layer.weight.shape).to(layer.weight.dtype)
    layer.weight_function = None
    gain = getattr(layer, "gain", None)
    if gain is not None:
        gain.requires_grad_(False).fill_(1.0)
    learned.take_values()
