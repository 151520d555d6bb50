"""What a module has in a packed file: which array, how much, how it is read and rebuilt."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from brevitas_multiquant.core.grids import WEIGHT_FORMATS, Grid
from brevitas_multiquant.core.packing import Array, packed_size
from brevitas_multiquant.core.selection import BRANCH_BITS
from brevitas_multiquant.errors import PackedFileError

KINDS = ("codes", "ranges", "norms", "floats")
"""Of arrays, in the order of the file."""

FLOAT_BYTES = 4
FLOAT_BITS = 8 * FLOAT_BYTES
NUMBER_BYTES = {"codes": 1, "ranges": FLOAT_BYTES, "norms": FLOAT_BYTES, "floats": FLOAT_BYTES}
"""Kind -> bytes of one number of it."""


@dataclass(frozen=True)
class Coding:
    """How the weights of a quantized layer are kept.

    Args:
        grid: whose integers they are; where floats are kept, the finest at which the layer runs.
        count: how many weights.
        bits: of each in the file: those of the grid's places, or 32; or one number for each output
            channel.
        running: the grid that runs now, all that is needed of a bit-width alone.
    """

    grid: Grid
    count: int
    bits: int | tuple[int, ...]
    running: Grid

    @property
    def mean_bits(self) -> float:
        """Bits of a weight, on average."""
        return self.bits if isinstance(self.bits, int) else sum(self.bits) / len(self.bits)

    @property
    def most_bits(self) -> int:
        """Of any weight."""
        return self.bits if isinstance(self.bits, int) else max(self.bits)

    @property
    def is_float(self) -> bool:
        """Whether the weights are kept before they are rounded."""
        return self.bits == FLOAT_BITS

    @property
    def is_format(self) -> bool:
        """Whether it is one of `WEIGHT_FORMATS`, which the first version of the file knows."""
        return self.bits == BRANCH_BITS and self.grid in WEIGHT_FORMATS.values()

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        bits = self.bits if isinstance(self.bits, int) else list(self.bits)
        return {"grid": self.grid.name, "bits": bits, "count": self.count}


@dataclass(frozen=True)
class Entry:
    """One module's share of an array.

    Args:
        kind: one of `KINDS`.
        name: of the module or tensor.
        size: numbers of the array.
        read: what goes into the array.
        write: rebuilds the module from that; the flag says whether it is to be trained.
        deployed: bytes in hardware, where those are fewer than in the file.
        owner: the module that has it in the file, where this one only reads it.
        coding: of the weights of a quantized layer.
    """

    kind: str
    name: str
    size: int
    read: Callable[[], Array]
    write: Callable[[Array, bool], None]
    deployed: int | None = None
    owner: nn.Module | None = None
    coding: Coding | None = None

    @property
    def bytes(self) -> int:
        """Of the file."""
        return self.size * NUMBER_BYTES[self.kind]

    @property
    def deployed_bytes(self) -> int:
        """Of the hardware."""
        return self.bytes if self.deployed is None else self.deployed

    @property
    def bytes_alone(self) -> int:
        """Of the hardware, of a network that never leaves the bit-width at which it runs now."""
        coding = self.coding
        if coding is None or not isinstance(coding.bits, int):
            return self.deployed_bytes
        return packed_size(coding.count, coding.running.place_bits)


def float_entries(module: nn.Module, name: str, skip: tuple[str, ...] = ()) -> Iterator[Entry]:
    """A module's own floats that its state dict has, those of its children aside.

    Args:
        module: any.
        name: of the module.
        skip: names of its tensors that are stored otherwise, or not at all.
    """
    own = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
    for key, tensor in own:
        persistent = key not in module._non_persistent_buffers_set
        if key not in skip and persistent and tensor.is_floating_point():
            yield float_entry(f"{name}.{key}", tensor)


def float_entry(name: str, tensor: Tensor) -> Entry:
    """A tensor as it is, in fp32."""

    def write(values: Array, trainable: bool) -> None:
        tensor.copy_(torch.from_numpy(values.copy()).view_as(tensor))

    return Entry("floats", name, tensor.numel(), lambda: fp32_numbers(name, tensor), write)


def fp32_numbers(name: str, tensor: Tensor) -> Array:
    """The numbers of a tensor, for the file.

    Raises:
        PackedFileError: other than finite numbers in fp32; names the tensor.
    """
    if tensor.dtype != torch.float32:
        raise PackedFileError(
            f"save_packed: expected float32 parameters, got {tensor.dtype} in {name}; "
            "call net.float() first"
        )
    array: Array = tensor.detach().reshape(-1).cpu().numpy()
    if not np.isfinite(array).all():
        raise PackedFileError(
            f"save_packed: expected finite parameters, got others in {name}; training diverged "
            "there: go back to an earlier checkpoint"
        )
    return array
