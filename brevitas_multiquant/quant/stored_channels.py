"""Weights in a packed file whose output channels have bit-widths of their own.

For each bit-width, from the smallest, the codes of the channels that have it follow each other,
packed as those of a layer of that bit-width are; each bit-width starts at a whole byte. A channel
of 0 bits has none.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from brevitas_multiquant.core.clip_gradient import guarded_upper
from brevitas_multiquant.core.grids import odd
from brevitas_multiquant.core.packing import Array, pack, packed_size, unpack
from brevitas_multiquant.errors import PackedFileError
from brevitas_multiquant.quant.entries import Coding, Entry
from brevitas_multiquant.quant.stored_codes import become_plain


def channels_entry(layer: Any, name: str, learned: Any) -> Entry:
    """The weights of a layer, each output channel in its own bits.

    Args:
        layer: a `CodeLayer` whose grids are `quant.channel_bits.ChannelBits`.
        name: of the layer.
        learned: the range of its weights, which has to be rebuilt before them.
    """
    bits = tuple(layer.channel_bits)
    count, taps = layer.weight.numel(), layer.weight[0].numel()
    sizes = [packed_size(len(rows) * taps, own) for own, rows in _groups(bits)]

    def read() -> Array:
        integers = layer.quant_weight().detach().flatten(1).cpu()
        pieces = [
            pack(((integers[rows] - odd(own).offset) / 2).int().numpy(), own)
            for own, rows in _groups(bits)
        ]
        return np.concatenate(pieces)

    def write(packed: Array, trainable: bool) -> None:
        lower, width = learned.lower, guarded_upper(learned.lower, learned.upper) - learned.lower
        weights = torch.zeros(len(bits), taps)
        expected = torch.zeros(len(bits), taps)
        pieces = np.split(packed, np.cumsum(sizes)[:-1])
        for piece, (own, rows) in zip(pieces, _groups(bits), strict=True):
            codes = unpack(piece, own, len(rows) * taps).astype(np.float32)
            places = torch.from_numpy(codes).view(len(rows), taps)
            weights[rows] = lower + width * (places / odd(own).levels)
            expected[rows] = 2.0 * places + odd(own).offset
        become_plain(layer, weights, learned)
        if not torch.equal(layer.quant_weight().flatten(1), expected):
            raise PackedFileError(f"{name}: the range ({lower}, {learned.upper}) loses its codes")

    coding = Coding(odd(max(bits)), count, bits, layer.weight_format)
    return Entry("codes", name, sum(sizes), read, write, coding=coding)


def _groups(bits: Sequence[int]) -> Iterator[tuple[int, list[int]]]:
    """Bit-widths, ascending, without 0, and the channels that have each."""
    for own in sorted({*bits} - {0}):
        yield own, [channel for channel, held in enumerate(bits) if held == own]
