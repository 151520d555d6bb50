"""The weights of a layer in a packed file: codes of two bits each, and back."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from brevitas_multiquant.core.clip_gradient import guarded_upper
from brevitas_multiquant.core.packing import Array, pack, packed_size, unpack
from brevitas_multiquant.core.selection import BRANCH_BITS
from brevitas_multiquant.errors import PackedFileError
from brevitas_multiquant.quant.entries import Entry
from brevitas_multiquant.quant.ranges import LearnedRange


def codes_entry(layer: Any, name: str, learned: LearnedRange) -> Entry:
    """The codes of a layer's weights, as the places of the integers in their format.

    Args:
        layer: a `CodeLayer`.
        name: of the layer.
        learned: the range of its weights, which has to be rebuilt before them.
    """
    count, form = layer.weight.numel(), layer.weight_format

    def positions(integers: Tensor) -> Tensor:
        return (integers - form.offset) / form.step

    def read() -> Array:
        integers = layer.quant_weight().reshape(-1).cpu()
        return pack(positions(integers).to(torch.uint8).numpy(), BRANCH_BITS)

    def write(packed: Array, trainable: bool) -> None:
        lower = learned.lower
        width = guarded_upper(lower, learned.upper) - lower
        codes = torch.arange(form.levels + 1)
        values = lower + width * (codes / form.levels)
        if not torch.equal(positions(layer.weight_quant(values)), codes.float()):
            raise PackedFileError(f"{name}: the range ({lower}, {learned.upper}) loses its codes")
        stored = unpack(packed, BRANCH_BITS, count)
        if stored.max(initial=0) > form.levels:
            raise PackedFileError(
                f"{name}: expected weight codes from 0 to {form.levels} of the format "
                f"{form.name}, got {stored.max()}"
            )
        # Nothing is clipped, as anything larger was refused; it is the fast way to look up.
        weights = torch.from_numpy(np.take(values.numpy(), stored, mode="clip"))
        layer.weight.data = weights.view(layer.weight.shape).to(layer.weight.dtype)
        layer.weight_function = None
        gain = getattr(layer, "gain", None)
        if gain is not None:  # it is in the weights now
            gain.requires_grad_(False).fill_(1.0)

    return Entry("codes", name, packed_size(count, BRANCH_BITS), read, write)
