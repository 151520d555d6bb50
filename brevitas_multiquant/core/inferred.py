"""What a float model at hand tells of itself: how it was built, and the images it takes."""

from typing import Any

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd

from brevitas_multiquant.core.float_model import ModelSource
from brevitas_multiquant.errors import SourceError


def infer_source(model: nn.Module) -> ModelSource | None:
    """The source of a timm or torchvision model, or None.

    Only a source that builds the same model is returned, see `builds_same`.
    """
    if type(model).__module__.startswith("torchvision.models."):
        return _infer_torchvision(model)
    return _infer_timm(model)


def _infer_torchvision(model: nn.Module) -> ModelSource | None:
    """The first builder of the model's own module that gives the same model."""
    from torchvision import models

    layers = [m for m in model.modules() if isinstance(m, (nn.Linear, _ConvNd))]
    if not layers:
        return None
    classes = len(layers[-1].weight)
    aux = {"aux_loss": True} if getattr(model, "aux_classifier", None) is not None else {}
    for name in _torchvision_names(model):
        published = list(models.get_model_weights(name))
        own = set(map(_classes_of, published)) or {_IMAGENET}
        kwargs = aux if own == {classes} else {"num_classes": classes, **aux}
        source = ModelSource("torchvision", name, kwargs)
        sizes = {_size_with(weights, layers[-1]) for weights in published}
        if (_of_maps(model) or sizes <= {_size(model)}) and builds_same(model, source):
            return source
    return None


def _torchvision_names(model: nn.Module) -> list[str]:
    """Builders of the file that defines a model's class."""
    from torchvision import models

    module = type(model).__module__
    named = {name: models.get_model_builder(name) for name in models.list_models()}
    return [name for name, builder in named.items() if builder.__module__ == module]


def _of_maps(model: nn.Module) -> bool:
    """Whether its published weights are of another size: those have auxiliary classifiers."""
    return ".segmentation." in type(model).__module__


_IMAGENET = 1000
"""Classes of published weights that name none, such as VGG-16's for its features."""


def _classes_of(weights: Any) -> int:
    return len(weights.meta.get("categories") or range(_IMAGENET))


def _size_with(weights: Any, classifier: nn.Module) -> int:
    """Numbers of published weights, if their last layer had the classes of another classifier."""
    of_class = _size(classifier) // len(classifier.weight)  # type: ignore[arg-type]
    more = len(classifier.weight) - _classes_of(weights)  # type: ignore[arg-type]
    return int(weights.meta["num_params"] + more * of_class)


def _size(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _infer_timm(model: nn.Module) -> ModelSource | None:
    declared: Any = getattr(model, "pretrained_cfg", None)
    name = declared.get("architecture") if isinstance(declared, dict) else None
    if not name:
        return None
    kwargs = _features_asked_for(model)
    classes = getattr(model, "num_classes", None)
    if not kwargs and isinstance(classes, int) and classes != declared.get("num_classes"):
        kwargs["num_classes"] = classes
    declared_channels, *_ = declared.get("input_size", (3,))
    channels = _image_channels(model, declared_channels)
    if channels != declared_channels:
        kwargs["in_chans"] = channels
    source = ModelSource("timm", name, kwargs)
    cut_out = type(model).__module__ == "timm.models._features"
    if (cut_out and _drops_most(model, name)) or not builds_same(model, source):
        return None
    return source


def _drops_most(model: nn.Module, name: str) -> bool:
    """Whether most of a model that is built for its features is not among them.

    Readers of files build no model much larger than its file.
    """
    whole = _build_without_weights(ModelSource("timm", name, {"num_classes": 0}))
    return _size(whole) > 2 * _size(model)


def _features_asked_for(model: nn.Module) -> dict[str, Any]:
    """Arguments of a network that was built with ``features_only``."""
    indices = getattr(getattr(model, "feature_info", None), "out_indices", None)
    if not isinstance(indices, (tuple, list)) or not indices:
        return {}
    getter = {"feature_cls": "getter"} if type(model).__name__ == "FeatureGetterNet" else {}
    return {"features_only": True, "out_indices": list(indices), "num_classes": 0, **getter}


def _image_channels(model: nn.Module, declared: int) -> int:
    """Channels of the images: those of the first convolution, unless it reads blocks of pixels.

    A model of timm that names no first convolution takes the channels it declares, no others.
    """
    first = next((m for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Conv3d))), None)
    config = getattr(model, "pretrained_cfg", None)
    adaptable = not isinstance(config, dict) or bool(config.get("first_conv", True))
    if first is None or not adaptable or first.in_channels in (4 * declared, 16 * declared):
        return declared
    return first.in_channels


def builds_same(model: nn.Module, source: ModelSource) -> bool:
    """Whether a source builds this model, weights apart.

    Compares the names and shapes of the state, and what the modules print of themselves: types,
    strides, dropout rates, activations.
    """
    try:
        twin = _build_without_weights(source)
    except SourceError:
        return False
    return _shapes(model) == _shapes(twin) and repr(model) == repr(twin)


def _build_without_weights(source: ModelSource) -> nn.Module:
    """The model on the meta device, or where its constructor computes with tensors, a real one."""
    try:
        with torch.device("meta"):
            return source.build()
    except SourceError:
        with torch.random.fork_rng(devices=[]):
            return source.build()


def _shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in model.state_dict().items()}


def infer_input_shape(model: nn.Module) -> tuple[int, ...]:
    """(1, C, H, W), or (1, C, T, H, W), that a model declares, else (1, 3, 224, 224)."""
    declared = getattr(model, "pretrained_cfg", None)
    size = declared.get("input_size") if isinstance(declared, dict) else None
    if type(model).__module__.startswith("torchvision.models."):
        size = _torchvision_size(model)
    channels, *positions = size or (3, 224, 224)
    return (1, _image_channels(model, channels), *positions)


def _torchvision_size(model: nn.Module) -> tuple[int, ...] | None:
    """The images that all published weights of a model's module were trained for, if one size."""
    from torchvision import models

    weights = [w for name in _torchvision_names(model) for w in models.get_model_weights(name)]
    presets = [getattr(w.transforms, "keywords", {}) for w in weights]
    sizes: set[Any] = {preset.get("crop_size") for preset in presets}
    if len(sizes) != 1 or None in sizes:
        return None
    (size,) = sizes
    return (3, size, size) if isinstance(size, int) else (3, _FRAMES, *size)


_FRAMES = 16
"""What torchvision trained its video networks on."""
