"""Packed files: safetensors, body weights four to a byte, everything checked on the way in.

A file holds, for the stem, each branch, each half branch and the head, up to four flat arrays, each
in the order of ``named_modules`` of the network that the header describes:

=============  =======  ===========================================================================
``codes``      uint8    2-bit weight codes q, the places of the integers in their `WeightFormat`,
                        packed by `brevitas_multiquant.packing.pack`; each layer starts at a whole
                        byte
``ranges``     float32  l, u of every weight and activation range
``norms``      float32  scale and shift of every batch norm: what it does in evaluation
``floats``     float32  every other parameter and buffer
=============  =======  ===========================================================================

The header (`brevitas_multiquant.packed_file`) holds the configuration, the source of the float
model and the input shape. What it claims is not believed: a network without memory is built from
it and compared with the arrays before anything is allocated, and building it reads no file and
downloads nothing.
"""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from brevitas.core.utils import StatelessBuffer
from torch import Tensor, nn

from brevitas_multiquant.collector import collector_paused
from brevitas_multiquant.config import MultiQuantConfig
from brevitas_multiquant.errors import PackedFileError, SourceError
from brevitas_multiquant.functional import guarded_upper
from brevitas_multiquant.nn.given import given_network
from brevitas_multiquant.nn.network import MultiQuantNet
from brevitas_multiquant.nn.switchable import ScaleShiftNorm, scale_and_shift
from brevitas_multiquant.packed_file import Array, read_packed, write_packed
from brevitas_multiquant.packing import pack, packed_size, unpack
from brevitas_multiquant.quant.layers import CodeLayer, weight_range
from brevitas_multiquant.quant.ranges import LearnedRange
from brevitas_multiquant.quant.slices import LayerSlice
from brevitas_multiquant.rewrite import multiquantize
from brevitas_multiquant.selection import BRANCH_BITS
from brevitas_multiquant.skeleton import (
    limited_construction,
    materialise,
    skeleton_of,
    unknown_values,
    without_memory,
)
from brevitas_multiquant.source import ModelSource

_HEADER_KEYS = ("config", "source", "input_shape")
_KINDS = ("codes", "ranges", "norms", "floats")


@dataclass(frozen=True)
class _Entry:
    """One module's share of an array: how large it is, how it is read and written."""

    kind: str
    name: str
    size: int
    read: Callable[[], Array]
    write: Callable[[Array], None]


def save_packed(net: MultiQuantNet, path: str | os.PathLike[str]) -> Path:
    """Write a network for evaluation and deployment: 2 bits a body weight.

    The latent float weights, and the statistics of batch norms apart from what they amount to,
    are not in the file: to go on training, keep a checkpoint of the state dict.

    Args:
        net: a network whose ranges have been initialised.
        path: the file to write; replaced only once the new one is complete.

    Returns:
        The path written.

    Raises:
        NetworkError: not a `MultiQuantNet`.
        SourceError: the network does not know how its float model is built.
        CalibrationError: a range that has seen no data.
        PackedFileError: a parameter that is not fp32, or a path that cannot be written.

    Example:
        >>> import tempfile
        >>> from torchvision.models import resnet18
        >>> from brevitas_multiquant import calibrate, multiquantize
        >>> net = multiquantize(resnet18(num_classes=10), [2, 4], input_shape=(1, 3, 32, 32))
        >>> images = torch.rand(4, 3, 32, 32)
        >>> calibrate(net, [images])
        >>> with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        ...     loaded = load_packed(save_packed(net, f"{folder}/net.safetensors"))
        ...     torch.equal(loaded(images), net.eval()(images))
        True
    """
    path = Path(path)
    net = given_network(net, "save_packed")
    source = net.source
    if source is None:
        raise SourceError(
            "save_packed: expected to know how the float model is built, got a network of unknown "
            "source; pass source=ModelSource(library, name, kwargs) to multiquantize, with the "
            'library "own" for a model of yours'
        )
    source.check()
    arrays = {f"{part}.{kind}": array for part, kind, array in _arrays(net) if array.size}
    header = {
        "config": net.config.to_dict(),
        "source": source.to_dict(),
        "input_shape": None if net.input_shape is None else list(net.input_shape),
    }
    return write_packed(path, header, arrays)


def load_packed(path: str | os.PathLike[str], model: nn.Module | None = None) -> MultiQuantNet:
    """The network of a packed file, in evaluation mode at its largest bit-width.

    Args:
        path: a file that `save_packed` wrote.
        model: the float model, for a file whose source is the user's own; its weights are not
            used. Otherwise it is built by name.

    Returns:
        A network whose outputs equal those of the saved one to the bit, in evaluation.

    Raises:
        PackedFileError: missing, damaged, of another version, or not of this network.
        SourceError: the float model cannot be built.
    """
    if model is not None and not isinstance(model, nn.Module):
        raise SourceError(f"model: expected the float nn.Module, got {type(model).__name__}")
    path = Path(path)
    header, arrays = read_packed(path, _HEADER_KEYS)
    with collector_paused():
        return _rebuild(header, arrays, model, path)


def _rebuild(
    header: dict[str, Any], arrays: dict[str, Array], model: nn.Module | None, path: Path
) -> MultiQuantNet:
    try:
        net = _skeleton(header, arrays, model)
        _check_sizes(net, arrays)
        if unknown_values(net):  # now that it is known to be as large as the file says
            net = _skeleton(header, arrays, model or ModelSource(**header["source"]).build())
        materialise(net)
        with torch.no_grad():
            _fill(net, arrays)
    except PackedFileError as error:
        raise PackedFileError(f"{path}: {error}") from error
    except SourceError:
        raise
    except Exception as error:  # whatever a made-up header makes the libraries stumble over
        raise PackedFileError(
            f"{path}: expected a header that describes a network, got one of which none can be "
            f"built: {error}"
        ) from error
    return net.eval()


def _skeleton(
    header: dict[str, Any], arrays: dict[str, Array], model: nn.Module | None
) -> MultiQuantNet:
    """The network of a header, without memory."""
    config = MultiQuantConfig.from_dict(header["config"])
    source = ModelSource.from_dict(header["source"])
    source.check()
    float_model = _float_skeleton(source, arrays) if model is None else skeleton_of(model)
    with without_memory():
        return multiquantize(
            float_model,
            config.bits,
            profile=config.profile,
            selection=config.selection,
            merge=config.merge,
            half_width=config.half_width,
            weights=config.weights,
            stem=source.stem,
            head=source.head,
            input_shape=_shape(header["input_shape"]),
            source=source,
            check=False,
        )


def _float_skeleton(source: ModelSource, arrays: dict[str, Array]) -> nn.Module:
    """The float model by name, no larger than a file of these arrays can be of."""
    codes_per_byte = 8 // BRANCH_BITS
    stored = sum(a.size * (codes_per_byte if a.dtype == np.uint8 else 1) for a in arrays.values())
    limit = _UNUSED_PARTS * stored + _SMALLEST_LIMIT
    source.check(largest_number=limit)
    with limited_construction(limit, modules=limit):
        try:
            with without_memory():
                return source.build()
        except SourceError:  # a constructor that computes with its tensors
            with torch.random.fork_rng(devices=[]):
                return skeleton_of(source.build())


_UNUSED_PARTS = 2
"""Auxiliary classifiers are built by name too, though no bit-width runs them."""

_SMALLEST_LIMIT = 10_000
"""Numbers that the smallest model may have beside its weights, such as 224 for an image size."""


def _parts(net: MultiQuantNet) -> Iterator[tuple[str, nn.Module]]:
    yield "stem", net.stem
    for index, branch in enumerate(net.branches):
        yield f"branches.{index}", branch
    for key, half in net.halves.items():
        yield f"halves.{key}", half
    yield "merge", net.merge
    yield "head", net.head


def _arrays(net: MultiQuantNet) -> Iterator[tuple[str, str, Array]]:
    with torch.no_grad():
        for part, module in _parts(net):
            entries = list(_entries(part, module))
            for kind in _KINDS:
                pieces = [entry.read() for entry in entries if entry.kind == kind]
                yield part, kind, np.concatenate(pieces) if pieces else np.empty(0, np.float32)


def _expected(net: MultiQuantNet) -> dict[str, list[_Entry]]:
    """Array -> the modules that share it, in order."""
    expected: dict[str, list[_Entry]] = {}
    for part, module in _parts(net):
        for entry in _entries(part, module):
            if entry.size:
                expected.setdefault(f"{part}.{entry.kind}", []).append(entry)
    return expected


def _check_sizes(net: MultiQuantNet, arrays: dict[str, Array]) -> None:
    expected = _expected(net)
    sizes = {key: sum(entry.size for entry in entries) for key, entries in expected.items()}
    got = {key: array.size for key, array in arrays.items()}
    if sizes != got:
        differing = sorted(key for key in sizes | got if sizes.get(key) != got.get(key))
        raise PackedFileError(
            "expected arrays of the network in the header, got others: "
            + ", ".join(f"{k}: {sizes.get(k, 0)} expected, {got.get(k, 0)} got" for k in differing)
        )


def _fill(net: MultiQuantNet, arrays: dict[str, Array]) -> None:
    for key, entries in _expected(net).items():
        bounds = np.cumsum([entry.size for entry in entries])[:-1]
        # ranges come before codes: weights are rebuilt from both
        for entry, piece in zip(entries, np.split(arrays[key], bounds), strict=True):
            entry.write(piece)


def _entries(part: str, root: nn.Module) -> Iterator[_Entry]:
    """Every module's share of the four arrays, in a fixed order, ranges first."""
    modules = [(f"{part}.{name}", module) for name, module in root.named_modules()]
    for name, module in modules:
        if isinstance(module, LearnedRange):
            yield _range_entry(name, module)
    for name, module in modules:
        if isinstance(module, (LearnedRange, StatelessBuffer, LayerSlice)):
            continue
        if isinstance(module, CodeLayer):
            yield _codes_entry(name, module)
            yield from _float_entries(name, module, skip=("weight", "gain"))
        elif isinstance(module, ScaleShiftNorm):
            yield _norm_entry(name, module)
        else:
            yield from _float_entries(name, module)


def _codes_entry(name: str, layer: CodeLayer) -> _Entry:
    count, form = layer.weight.numel(), layer.weight_format

    def positions(integers: Tensor) -> Tensor:
        return (integers - form.offset) / form.step

    def read() -> Array:
        integers = layer.quant_weight().reshape(-1).cpu()
        return pack(positions(integers).to(torch.uint8).numpy(), BRANCH_BITS)

    def write(packed: Array) -> None:
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
            gain.fill_(1.0)

    return _Entry("codes", name, packed_size(count, BRANCH_BITS), read, write)


def _range_entry(name: str, learned: LearnedRange) -> _Entry:
    def read() -> Array:
        learned.require_ready(name)
        return _numpy(name, torch.stack([learned.lower, learned.upper]))

    def write(values: Array) -> None:
        learned.lower.copy_(torch.tensor(values[0]))
        learned.upper.copy_(torch.tensor(values[1]))
        learned.observed.fill_(1)

    return _Entry("ranges", name, 2, read, write)


def _norm_entry(name: str, norm: Any) -> _Entry:
    def read() -> Array:
        return _numpy(name, torch.cat(scale_and_shift(norm)))

    def write(values: Array) -> None:
        scale, shift = torch.from_numpy(values.copy()).chunk(2)
        norm.affine = True
        norm.weight, norm.bias = nn.Parameter(scale), nn.Parameter(shift)
        norm.running_mean.zero_()
        norm.running_var.fill_(1.0)
        norm.eps = 0.0

    return _Entry("norms", name, 2 * norm.num_features, read, write)


def _float_entries(name: str, module: nn.Module, skip: tuple[str, ...] = ()) -> Iterator[_Entry]:
    own = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
    for key, tensor in own:
        persistent = key not in module._non_persistent_buffers_set
        if key not in skip and persistent and tensor.is_floating_point():
            yield _float_entry(f"{name}.{key}", tensor)


def _float_entry(name: str, tensor: Tensor) -> _Entry:
    def write(values: Array) -> None:
        tensor.copy_(torch.from_numpy(values.copy()).view_as(tensor))

    return _Entry("floats", name, tensor.numel(), lambda: _numpy(name, tensor), write)


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


def _shape(value: Any) -> tuple[int, ...] | None:
    if value is None:
        return None
    if not isinstance(value, list) or len(value) != 4:
        raise PackedFileError(f"expected input_shape to be four numbers, got {value!r}")
    return tuple(value)
