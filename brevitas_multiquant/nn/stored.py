"""What each module of a network has in a packed file: which array, how much, how it is rebuilt.

The one list of rows: saving reads them, loading writes them, and what is about to be written is
compared with what a reader would build (`layout_of`). A kind of module that needs a row of its own
gets it in `own_entries`; whatever has none is stored as floats.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from brevitas.core.utils import StatelessBuffer
from torch import Tensor, fx, nn

from brevitas_multiquant.core.clip_quantize import guarded_upper
from brevitas_multiquant.core.packing import Array, pack, packed_size, unpack
from brevitas_multiquant.core.selection import BRANCH_BITS
from brevitas_multiquant.errors import PackedFileError
from brevitas_multiquant.nn.network import MultiQuantNet
from brevitas_multiquant.nn.switchable import is_scale_and_shift, scale_and_shift
from brevitas_multiquant.quant.layers import CodeLayer, weight_range
from brevitas_multiquant.quant.ranges import LearnedRange
from brevitas_multiquant.quant.slices import LayerSlice

KINDS = ("codes", "ranges", "norms", "floats")
"""Of arrays, in the order of the file."""

NUMBER_BYTES = {"codes": 1, "ranges": 4, "norms": 4, "floats": 4}
"""Kind -> bytes of one number of it."""


@dataclass(frozen=True)
class Entry:
    """One module's share of an array.

    Args:
        kind: one of `KINDS`.
        name: of the module or tensor.
        size: numbers of the array.
        read: what goes into the array.
        write: rebuilds the module from that; the flag says whether it is to be trained.
    """

    kind: str
    name: str
    size: int
    read: Callable[[], Array]
    write: Callable[[Array, bool], None]

    @property
    def bytes(self) -> int:
        """Of the file."""
        return self.size * NUMBER_BYTES[self.kind]


def parts_of(net: MultiQuantNet) -> Iterator[tuple[str, nn.Module]]:
    """The parts of a network that have arrays of their own, by name."""
    yield "stem", net.stem
    for index, branch in enumerate(net.branches):
        yield f"branches.{index}", branch
    for key, half in net.halves.items():
        yield f"halves.{key}", half
    yield "merge", net.merge
    yield "head", net.head


def entries_of(part: str, root: nn.Module) -> Iterator[Entry]:
    """Every module's share of the four arrays, in a fixed order, ranges first."""
    modules = [(f"{part}.{name}", module) for name, module in root.named_modules()]
    for is_range in (True, False):  # weights are rebuilt from both
        for name, module in modules:
            if isinstance(module, LearnedRange) is is_range:
                yield from own_entries(name, module)


def own_entries(name: str, module: nn.Module) -> Iterator[Entry]:
    """What one module, its children aside, has in a file."""
    if isinstance(module, (StatelessBuffer, LayerSlice)):
        return
    if isinstance(module, LearnedRange):
        yield _range_entry(name, module)
    elif isinstance(module, CodeLayer):
        yield _codes_entry(name, module)
        yield from _float_entries(name, module, skip=("weight", "gain"))
    elif is_scale_and_shift(module):
        yield _norm_entry(name, module)
    else:
        yield from _float_entries(name, module)


def layout_of(net: MultiQuantNet) -> dict[str, str]:
    """Module -> what it is and what it has in a file; nothing is read or computed.

    Two networks of one layout read each other's files. What modules print of themselves belongs to
    it: strides, slopes, the eps of a layer norm. Containers, and what does nothing in evaluation
    (dropout), are left out.
    """
    layout = {}
    for part, root in parts_of(net):
        for path, module in root.named_modules():
            name = f"{part}.{path}".rstrip(".")
            if text := _described(name, module):
                layout[name] = text
    return layout


def _described(name: str, module: nn.Module) -> str | None:
    entries = list(own_entries(name, module))
    stored = ", ".join(
        " ".join([entry.kind, *entry.name[len(name) :].split("."), str(entry.size)])
        for entry in entries
    ).replace("  ", " ")
    if is_scale_and_shift(module):  # of whatever type
        return f"a batch norm ({stored})"
    if not stored and (_is_container(module) or _is_inert(module)):
        return None
    options = module.extra_repr().replace("inplace=True", "")
    return f"{type(module).__name__}({options})" + (f" ({stored})" if stored else "")


def _is_container(module: nn.Module) -> bool:
    """Whether it is told by what is in it; Brevitas's own parts are told by their layers."""
    if isinstance(module, CodeLayer):
        return False
    of_brevitas = type(module).__module__.startswith("brevitas.")
    return of_brevitas or isinstance(module, fx.GraphModule) or bool(module._modules)


def _is_inert(module: nn.Module) -> bool:
    """Whether it does nothing in evaluation: dropout by any name, and what stands in for it."""
    return isinstance(module, nn.Identity) or "drop" in type(module).__name__.lower()


def _codes_entry(name: str, layer: CodeLayer) -> Entry:
    count, form = layer.weight.numel(), layer.weight_format

    def positions(integers: Tensor) -> Tensor:
        return (integers - form.offset) / form.step

    def read() -> Array:
        integers = layer.quant_weight().reshape(-1).cpu()
        return pack(positions(integers).to(torch.uint8).numpy(), BRANCH_BITS)

    def write(packed: Array, trainable: bool) -> None:
        learned = weight_range(layer)
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


def _range_entry(name: str, learned: LearnedRange) -> Entry:
    def read() -> Array:
        learned.require_ready(name)
        return _numpy(name, torch.stack([learned.lower, learned.upper]))

    def write(values: Array, trainable: bool) -> None:
        learned.lower.copy_(torch.tensor(values[0]))
        learned.upper.copy_(torch.tensor(values[1]))
        learned.observed.fill_(1)

    return Entry("ranges", name, 2, read, write)


def _norm_entry(name: str, norm: Any) -> Entry:
    def read() -> Array:
        return _numpy(name, torch.cat(scale_and_shift(norm)))

    def write(values: Array, trainable: bool) -> None:
        scale, shift = torch.from_numpy(values.copy()).chunk(2)
        norm.affine = True
        norm.weight, norm.bias = nn.Parameter(scale), nn.Parameter(shift)
        norm.running_mean.zero_()
        if not trainable:
            norm.eps = 0.0
        # Their sum is 1 within 2**-25, so that the root's inverse is 1 in fp32, to the bit.
        norm.running_var.fill_(1.0 - norm.eps)
        norm.fixed_statistics = trainable

    return Entry("norms", name, 2 * norm.num_features, read, write)


def _float_entries(name: str, module: nn.Module, skip: tuple[str, ...] = ()) -> Iterator[Entry]:
    own = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
    for key, tensor in own:
        persistent = key not in module._non_persistent_buffers_set
        if key not in skip and persistent and tensor.is_floating_point():
            yield _float_entry(f"{name}.{key}", tensor)


def _float_entry(name: str, tensor: Tensor) -> Entry:
    def write(values: Array, trainable: bool) -> None:
        tensor.copy_(torch.from_numpy(values.copy()).view_as(tensor))

    return Entry("floats", name, tensor.numel(), lambda: _numpy(name, tensor), write)


def _numpy(name: str, tensor: Tensor) -> Array:
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
