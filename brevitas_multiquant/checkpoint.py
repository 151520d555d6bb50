"""Packed files: safetensors, body weights four to a byte, everything checked on the way in.

A file holds, for the stem, each branch and the head, up to four flat arrays, each in the order of
``named_modules`` of the network that the header describes:

=============  =======  ===========================================================================
``codes``      uint8    2-bit weight codes q (0..3), packed by `brevitas_multiquant.packing.pack`;
                        each layer starts at a whole byte
``ranges``     float32  l, u of every weight and activation range
``norms``      float32  scale and shift of every batch norm: what it does in evaluation
``floats``     float32  every other parameter and buffer
=============  =======  ===========================================================================

The header, JSON under the one key ``brevitas_multiquant`` of the safetensors metadata (one key, so
that equal networks give equal files), holds format, version, the configuration, the source of the
float model, the input shape, and a SHA-256 of each array.
"""

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from brevitas.core.utils import StatelessBuffer
from numpy.typing import NDArray
from torch import Tensor, nn

from brevitas_multiquant.config import MultiQuantConfig
from brevitas_multiquant.errors import CalibrationError, PackedFileError, SourceError
from brevitas_multiquant.functional import WEIGHT_LEVELS, guarded_upper
from brevitas_multiquant.nn.network import MultiQuantNet
from brevitas_multiquant.nn.switchable import ScaleShiftNorm, scale_and_shift
from brevitas_multiquant.packing import pack, packed_size, unpack
from brevitas_multiquant.quant.layers import CodeLayer, weight_range
from brevitas_multiquant.quant.ranges import LearnedRange
from brevitas_multiquant.rewrite import multiquantize
from brevitas_multiquant.selection import BRANCH_BITS
from brevitas_multiquant.source import ModelSource

HEADER = "brevitas_multiquant"
FORMAT = "packed"
VERSION = 1
_HEADER_KEYS = {"format", "version", "config", "source", "input_shape", "sha256"}
_KINDS = ("codes", "ranges", "norms", "floats")
Array = NDArray[Any]


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
    from safetensors.numpy import save

    path = Path(path)
    source = net.source
    if source is None:
        raise SourceError(
            "save_packed: expected to know how the float model is built, got a network of unknown "
            "source; pass source=ModelSource(library, name, kwargs) to multiquantize, with the "
            'library "own" for a model of yours'
        )
    arrays = {f"{part}.{kind}": array for part, kind, array in _arrays(net) if array.size}
    header = {
        "format": FORMAT,
        "version": VERSION,
        "config": net.config.to_dict(),
        "source": source.to_dict(),
        "input_shape": None if net.input_shape is None else list(net.input_shape),
        "sha256": {key: _digest(array) for key, array in arrays.items()},
    }
    return _write_whole(path, save(arrays, {HEADER: json.dumps(header)}))


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
    path = Path(path)
    header, arrays = _read_checked(path)
    try:
        config = MultiQuantConfig.from_dict(header["config"])
        source = ModelSource.from_dict(header["source"])
    except ValueError as error:
        raise PackedFileError(f"{path}: {error}") from error
    net = multiquantize(
        source.build() if model is None else model,
        config.bits,
        profile=config.profile,
        selection=config.selection,
        merge=config.merge,
        stem=source.stem,
        head=source.head,
        input_shape=_shape(header["input_shape"], path),
        source=source,
        check=False,
    )
    with torch.no_grad():
        _fill(net, arrays, path)
    return net.eval()


def _parts(net: MultiQuantNet) -> Iterator[tuple[str, nn.Module]]:
    yield "stem", net.stem
    for index, branch in enumerate(net.branches):
        yield f"branches.{index}", branch
    yield "merge", net.merge
    yield "head", net.head


def _arrays(net: MultiQuantNet) -> Iterator[tuple[str, str, Array]]:
    with torch.no_grad():
        for part, module in _parts(net):
            entries = list(_entries(part, module))
            for kind in _KINDS:
                pieces = [entry.read() for entry in entries if entry.kind == kind]
                yield part, kind, np.concatenate(pieces) if pieces else np.empty(0, np.float32)


def _fill(net: MultiQuantNet, arrays: dict[str, Array], path: Path) -> None:
    expected: dict[str, list[_Entry]] = {}
    for part, module in _parts(net):
        for entry in _entries(part, module):
            if entry.size:
                expected.setdefault(f"{part}.{entry.kind}", []).append(entry)
    sizes = {key: sum(entry.size for entry in entries) for key, entries in expected.items()}
    got = {key: array.size for key, array in arrays.items()}
    if sizes != got:
        differing = sorted(key for key in sizes | got if sizes.get(key) != got.get(key))
        raise PackedFileError(
            f"{path}: expected arrays of the network in the header, got others: "
            + ", ".join(f"{k}: {sizes.get(k, 0)} expected, {got.get(k, 0)} got" for k in differing)
        )
    for key, entries in expected.items():
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
        if isinstance(module, (LearnedRange, StatelessBuffer)):
            continue
        if isinstance(module, CodeLayer):
            yield _codes_entry(name, module)
            yield from _float_entries(name, module, skip=("weight", "gain"))
        elif isinstance(module, ScaleShiftNorm):
            yield _norm_entry(name, module)
        else:
            yield from _float_entries(name, module)


def _codes_entry(name: str, layer: CodeLayer) -> _Entry:
    count = layer.weight.numel()

    def read() -> Array:
        odd = layer.quant_weight().reshape(-1).cpu()
        return pack(((odd + WEIGHT_LEVELS) / 2).to(torch.uint8).numpy(), BRANCH_BITS)

    def write(packed: Array) -> None:
        q = torch.from_numpy(unpack(packed, BRANCH_BITS, count).astype(np.float32))
        learned = weight_range(layer)
        lower = learned.lower
        width = guarded_upper(lower, learned.upper) - lower
        layer.weight.copy_((lower + width * (q / WEIGHT_LEVELS)).view_as(layer.weight))
        layer.weight_function = None
        if not torch.equal((layer.quant_weight().reshape(-1) + WEIGHT_LEVELS) / 2, q):
            raise PackedFileError(f"{name}: the range ({lower}, {learned.upper}) loses its codes")

    return _Entry("codes", name, packed_size(count, BRANCH_BITS), read, write)


def _range_entry(name: str, learned: LearnedRange) -> _Entry:
    def read() -> Array:
        if not learned.ready:
            raise CalibrationError(
                f"{name}: expected a range initialised from data, got one that has seen none; "
                "call calibrate(net, loader) or train first"
            )
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
    return tensor.detach().reshape(-1).cpu().numpy()


def _digest(array: Array) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()


def _write_whole(path: Path, data: bytes) -> Path:
    """Write beside the target and rename, so that a reader sees the old file or the new one."""
    try:
        handle, beside = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(beside, 0o644)
            os.replace(beside, path)
        except BaseException:
            os.unlink(beside)
            raise
    except OSError as error:
        raise PackedFileError(f"save_packed: cannot write {path}: {error.strerror}") from error
    return path


def _read_checked(path: Path) -> tuple[dict[str, Any], dict[str, Array]]:
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise PackedFileError(f"load_packed: expected a packed file at {path}, found none")
    try:
        with safe_open(path, "np") as file:
            metadata = file.metadata() or {}
            header = _checked_header(metadata, path)
            names = sorted(file.keys())
            if names != sorted(header["sha256"]):
                raise PackedFileError(
                    f"{path}: expected the arrays {sorted(header['sha256'])}, got {names}"
                )
            arrays = {key: file.get_tensor(key) for key in names}
    except (SafetensorError, OSError) as error:
        raise PackedFileError(f"{path}: not a whole safetensors file: {error}") from error
    for key, array in arrays.items():
        kind = np.uint8 if key.endswith(".codes") else np.float32
        if array.dtype != kind or array.ndim != 1:
            raise PackedFileError(
                f"{path}: expected {key} to be a flat array of {kind.__name__}, got "
                f"{array.dtype} of shape {array.shape}"
            )
        if _digest(array) != header["sha256"][key]:
            raise PackedFileError(f"{path}: {key} is damaged (its SHA-256 differs)")
    return header, arrays


def _checked_header(metadata: dict[str, str], path: Path) -> dict[str, Any]:
    try:
        header = json.loads(metadata[HEADER])
    except (KeyError, ValueError, RecursionError) as error:
        raise PackedFileError(f"{path}: no header of brevitas_multiquant in it") from error
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise PackedFileError(f"{path}: expected a header of the format {FORMAT!r}, got another")
    if header.get("version") != VERSION:
        raise PackedFileError(
            f"{path}: expected version {VERSION} of the format, got {header.get('version')!r}; "
            "install the release of brevitas_multiquant that wrote it"
        )
    if set(header) != _HEADER_KEYS:
        raise PackedFileError(f"{path}: expected a header with the keys {sorted(_HEADER_KEYS)}")
    if not isinstance(header["sha256"], dict):
        raise PackedFileError(f"{path}: expected a checksum for each array, got none")
    return header


def _shape(value: Any, path: Path) -> tuple[int, ...] | None:
    if value is None:
        return None
    if not isinstance(value, list) or len(value) != 4:
        raise PackedFileError(f"{path}: expected input_shape to be four numbers, got {value!r}")
    return tuple(value)
