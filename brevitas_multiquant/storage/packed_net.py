"""Packed files: safetensors, body weights in as few bits as they have, checked on the way in.

A file holds, for the stem, each branch, each half branch and the head, up to four flat arrays, each
in the order of ``named_modules`` of the network that the header describes:

=============  =======  ===========================================================================
``codes``      uint8    weight codes q, the places of the integers in their `Grid`, packed by
                        `brevitas_multiquant.core.packing.pack`, two bits each or as many as the
                        header says of the layer; each layer starts at a whole byte
``ranges``     float32  l, u of every weight and activation range
``norms``      float32  scale and shift of every batch norm: what it does in evaluation
``floats``     float32  every other parameter and buffer
=============  =======  ===========================================================================

Of a layer that runs at several bit-widths the codes of the largest are there where the others
follow from them, and its float weights, which bit-widths are rounded from, where they do not.

The header (`brevitas_multiquant.storage.packed_file`) holds the configuration, the source of the
float model, the input shape, and what the network is for where that is known. What it claims is not
believed: a network without memory is built from it and compared with the arrays before anything is
allocated, and building it reads no file and downloads nothing.
"""

import json
import os
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from brevitas_multiquant.core.config import MultiQuantConfig
from brevitas_multiquant.core.float_model import ModelSource
from brevitas_multiquant.core.image_shapes import is_image_shape
from brevitas_multiquant.core.image_task import ImageTask
from brevitas_multiquant.core.packing import Array
from brevitas_multiquant.core.paused_collector import collector_paused
from brevitas_multiquant.core.selection import BRANCH_BITS
from brevitas_multiquant.errors import PackedFileError, SourceError
from brevitas_multiquant.methods.convert import multiquantize
from brevitas_multiquant.methods.settle import settle
from brevitas_multiquant.nn.given import given_network
from brevitas_multiquant.nn.network import MultiQuantNet
from brevitas_multiquant.nn.stored import codings_of, entries_of, layout_of, parts_of
from brevitas_multiquant.quant.entries import KINDS
from brevitas_multiquant.storage.claims import (
    channels_in,
    check_sizes,
    check_weights,
    described,
    expected_arrays,
)
from brevitas_multiquant.storage.packed_file import read_packed, write_packed
from brevitas_multiquant.storage.shipped import packed_path
from brevitas_multiquant.storage.skeleton import (
    limited_construction,
    materialise,
    skeleton_of,
    unknown_values,
    without_memory,
)


def save_packed(net: MultiQuantNet, path: str | os.PathLike[str]) -> Path:
    """Write a network for evaluation and deployment: a body weight in the bits that it needs.

    That is 2 bits in branches, the largest bit-width where the smaller ones follow from its
    integers, a layer's own in an assignment, and 32 where weights are rounded anew for each
    bit-width (``cost(net)`` and the model card say which).

    The latent float weights, and the statistics of batch norms apart from what they amount to,
    are not in the file: to go on training, keep a checkpoint of the state dict. Before anything is
    written, the network is compared, module by module, with the one that a reader would build.

    Where ``net.image_task`` says what the network is for, the file carries it.

    Args:
        net: a network whose ranges have been initialised.
        path: the file to write; replaced only once the new one is complete.

    Returns:
        The path written.

    Raises:
        NetworkError: not a `MultiQuantNet`.
        SourceError: the network does not know how its float model is built.
        CalibrationError: a range that has seen no data.
        ConfigError: an ``image_task`` with accuracies of bit-widths that the network has not.
        PackedFileError: a parameter that is not fp32, modules that a reader would not have, since
            somebody replaced or wrapped them, or a path that cannot be written.

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
    header = {
        "config": net.config.to_dict(),
        "source": source.to_dict(),
        "input_shape": None if net.input_shape is None else list(net.input_shape),
    }
    codings = codings_of(net)
    if not all(coding.is_format for coding in codings.values()):
        header["weights"] = described(codings)
    if net.image_task is not None:
        net.image_task.check(net.bits)
        header["image_task"] = net.image_task.to_dict()
    arrays = _arrays(net)
    built = {key: value for key, value in header.items() if key != "image_task"}
    _require_readable(net, built, own=source.library == "own")
    return write_packed(path, header, arrays)


def load_packed(
    path: str | os.PathLike[str], model: nn.Module | None = None, *, trainable: bool = False
) -> MultiQuantNet:
    """The network of a packed file, in evaluation mode at its largest bit-width.

    It is for evaluation: training it raises a named error, and its parameters take no gradient.
    With ``trainable`` it starts a new training from what the file has. That is less than what was
    trained, so where a checkpoint of the state dict exists, go on from that one:

    * latent weights start at the values of their codes; where in its bin each was, is lost;
    * batch norms train as the factor and the summand per channel that they are in evaluation:
      statistics, and so normalisation by the batch, are lost;
    * weights that a function placed, standardised ones or those behind a tanh, are plain weights
      from then on, and a gain is 1;
    * accuracies in ``image_task`` are of another network than the one to come, and left out;
    * optimizers' state, schedules, counters and moving averages are not in the file;
    * do not calibrate: it would move the ranges, and with them the codes.

    Args:
        path: a file that `save_packed` wrote, or ``"zoo:NAME"`` of a network that comes with the
            package (`brevitas_multiquant.storage.shipped.shipped_networks`).
        model: the float model, for a file whose source is the user's own; its weights are not
            used. Otherwise it is built by name.
        trainable: make it ready for training.

    Returns:
        A network whose outputs equal those of the saved one to the bit, in evaluation.

    Raises:
        PackedFileError: missing, damaged, of another version, or not of this network.
        SourceError: the float model cannot be built.
    """
    if model is not None and not isinstance(model, nn.Module):
        raise SourceError(f"model: expected the float nn.Module, got {type(model).__name__}")
    path = packed_path(path)
    header, arrays = read_packed(path)
    with collector_paused():
        net = _rebuild(header, arrays, model, path, trainable)
    if trainable:
        net.batch_statistics = False
        net.image_task = None if net.image_task is None else net.image_task.without_accuracy()
    else:
        net.requires_grad_(False).evaluation_only = True
    return net


def _rebuild(
    header: dict[str, Any],
    arrays: dict[str, Array],
    model: nn.Module | None,
    path: Path,
    trainable: bool,
) -> MultiQuantNet:
    try:
        source = ModelSource.from_dict(header["source"])
        source.check()
        limit = _size_limit(arrays)
        float_model = _float_skeleton(source, limit) if model is None else skeleton_of(model)
        net = _skeleton(header, source, float_model)
        check_weights(net, header)
        check_sizes(net, arrays)
        if unknown_values(net):  # now that it is known to be as large as the file says
            net = _skeleton(header, source, skeleton_of(model or source.build()))
        if "image_task" in header:
            net.image_task = ImageTask.from_dict(header["image_task"])
            net.image_task.check(net.bits)
        materialise(net)
        with torch.no_grad():
            _fill(net, arrays, trainable)
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
    header: Mapping[str, Any], source: ModelSource, float_model: nn.Module
) -> MultiQuantNet:
    """The network of a header, without memory."""
    config = MultiQuantConfig.from_dict(header["config"])
    with without_memory():
        net = multiquantize(
            float_model,
            config=config,
            stem=source.stem,
            head=source.head,
            keep=source.keep,
            input_shape=_shape(header["input_shape"]),
            source=source,
            check=False,
        )
    if (channels := channels_in(header)) and config.assignment is not None:
        settle(net, config.assignment, channels)
    return net


def _float_skeleton(source: ModelSource, limit: int) -> nn.Module:
    """The float model by name, of no more numbers and modules than ``limit``."""
    source.check(largest_number=limit)
    with limited_construction(limit, modules=limit):
        return _float_model(source)


def _float_model(source: ModelSource) -> nn.Module:
    """The float model by name, without memory."""
    try:
        with without_memory():
            return source.build()
    except SourceError:  # a constructor that computes with its tensors
        with torch.random.fork_rng(devices=[]):
            return skeleton_of(source.build())


def _size_limit(arrays: dict[str, Array]) -> int:
    """The largest model that a file of these arrays can be of."""
    codes_per_byte = 8 // BRANCH_BITS
    stored = sum(a.size * (codes_per_byte if a.dtype == np.uint8 else 1) for a in arrays.values())
    return _UNUSED_PARTS * stored + _SMALLEST_LIMIT


_UNUSED_PARTS = 2
"""Auxiliary classifiers are built by name too, though no bit-width runs them."""

_SMALLEST_LIMIT = 10_000
"""Numbers that the smallest model may have beside its weights, such as 224 for an image size."""


def _require_readable(net: MultiQuantNet, header: dict[str, Any], own: bool) -> None:
    """Compare a network with what a reader of its file would build.

    That is what the header says, built without memory; for a model of the user's own, which the
    header cannot build, what `multiquantize` built.
    """
    expected = net.layout if own else _layout_of_header(json.dumps(header, sort_keys=True))
    if expected is None:
        return
    got = layout_of(net)
    names = {**expected, **got}
    differing = [name for name in names if expected.get(name) != got.get(name)]
    if differing:
        listed = "; ".join(
            f"{name}: expected {expected.get(name, 'nothing')}, got {got.get(name, 'nothing')}"
            for name in differing[:_LISTED]
        )
        more = len(differing) - _LISTED
        raise PackedFileError(
            "save_packed: expected the modules that a reader of the file would build, got others, "
            f"which would be lost: {listed}{f'; and {more} more' if more > 0 else ''}. Undo what "
            "replaced or wrapped them after multiquantize (torch.nn.utils.prune.remove, a merge of "
            "adapters), or change the float model before it, with a source that builds it so"
        )


_LISTED = 4
"""Modules that an error names."""


@lru_cache(maxsize=8)
def _layout_of_header(header: str) -> Mapping[str, str]:
    """What a reader would build; remembered, for a training that saves after every epoch."""
    values = json.loads(header)
    source = ModelSource.from_dict(values["source"])
    with collector_paused(), torch.random.fork_rng(devices=[]):
        return layout_of(_skeleton(values, source, _float_model(source)))


def _arrays(net: MultiQuantNet) -> dict[str, Array]:
    """Array name -> its numbers, empty ones left out."""
    arrays = {}
    with torch.no_grad():
        for part, module in parts_of(net):
            entries = [entry for entry in entries_of(part, module) if entry.size]
            for kind in KINDS:
                pieces = [entry.read() for entry in entries if entry.kind == kind]
                if pieces:
                    arrays[f"{part}.{kind}"] = np.concatenate(pieces)
    return arrays


def _fill(net: MultiQuantNet, arrays: dict[str, Array], trainable: bool) -> None:
    for key, entries in expected_arrays(net).items():
        bounds = np.cumsum([entry.size for entry in entries])[:-1]
        # ranges come before codes: weights are rebuilt from both
        for entry, piece in zip(entries, np.split(arrays[key], bounds), strict=True):
            entry.write(piece, trainable)


def _shape(value: Any) -> tuple[int, ...] | None:
    if value is None:
        return None
    if not is_image_shape(value):
        raise PackedFileError(
            f"expected input_shape to be four numbers, or five of videos, got {value!r}"
        )
    return tuple(value)
