"""The models of timm and torchvision, and which of them are convolutional networks."""

import json
import warnings
from collections import Counter
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import timm
import torch
import torchvision
from torch import nn

from brevitas_multiquant.core.inferred import infer_input_shape

_CLASSES = 1000


@dataclass(frozen=True)
class Zoo:
    """What ``cnns.json`` holds: made by running every model, not by names of architectures.

    Args:
        criterion: what makes a model a convolutional network.
        cnns: names of those that are, as ``library:name``.
        representatives: the smallest of each library, file and class.
    """

    criterion: str
    cnns: tuple[str, ...]
    representatives: tuple[str, ...]


@cache
def zoo() -> Zoo:
    """The convolutional networks of both libraries."""
    data = json.loads((Path(__file__).parent / "cnns.json").read_text())
    return Zoo(data["criterion"], tuple(data["cnns"]), tuple(data["representatives"]))


def all_names() -> list[str]:
    """Every classification model of both libraries: representatives, convolutional ones, others.

    Of the others one of each family comes first, so that a short walk sees every kind.
    """
    everything = [
        *(f"timm:{name}" for name in timm.list_models() if _is_timms_own(name)),
        *(f"tv:{name}" for name in torchvision.models.list_models(module=torchvision.models)),
    ]
    first = dict.fromkeys((*zoo().representatives, *zoo().cnns))
    seen: Counter[str] = Counter()
    rank = {}
    for name in everything:
        rank[name] = seen[family(name)]
        seen[family(name)] += 1
    return [*first, *sorted((n for n in everything if n not in first), key=rank.__getitem__)]


def _is_timms_own(name: str) -> bool:
    """Whether timm defines a model: others can be registered with it, as this package does."""
    return timm.models.model_entrypoint(name).__module__.startswith("timm.")


def family(name: str) -> str:
    """The file that defines a model, with its library: ``"timm resnet"``."""
    library, _, model = name.partition(":")
    if library == "tv":
        module = torchvision.models.get_model_builder(model).__module__
    else:
        module = timm.models.model_entrypoint(model).__module__
    return f"{'torchvision' if library == 'tv' else library} {module.rpartition('.')[2]}"


def build(name: str, **options: Any) -> nn.Module:
    """A model with random weights; with a classifier where its author left it out."""
    library, _, model = name.partition(":")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if library == "tv":
            return torchvision.models.get_model(model, weights=None, **options)
        built = timm.create_model(model, **options)
        if getattr(built, "num_classes", _CLASSES) == 0:
            built = timm.create_model(model, num_classes=_CLASSES, **options)
        return built


def build_without_weights(name: str) -> nn.Module:
    """A model on the meta device, or a real one where its constructor computes with tensors."""
    try:
        with torch.device("meta"):
            return build(name)
    except Exception:  # whatever a constructor raises there
        return build(name)


def small_shape(model: nn.Module, size: int) -> tuple[int, ...]:
    """(1, C, size, size), or larger where a model says so."""
    batch, channels, height, width = infer_input_shape(model)
    config = getattr(model, "pretrained_cfg", None)
    if not isinstance(config, dict):
        special = (height, width) != (224, 224)  # of torchvision's, Inception alone
        return (batch, channels, height, width) if special else (batch, channels, size, size)
    if config.get("fixed_input_size"):
        return (batch, channels, height, width)
    unpadded = 96 if height == 299 else size  # Inception pads nowhere
    _, *least = config.get("min_input_size") or (channels, unpadded, unpadded)
    return (batch, channels, max(size, least[0]), max(size, least[1]))
