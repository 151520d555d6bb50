"""Networks of timm and torchvision that give something else than classes of an image."""

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

from timm import create_model
from torch import nn
from torchvision import models

from brevitas_multiquant.methods.detection import DensePart
from brevitas_multiquant.methods.region_heads import KINDS, region_head
from integration_tests.models import small_shape, zoo

Shape = tuple[int, ...]

ATTENTION = ("mvit", "swin3d")
TWO_IMAGES = ("raft",)
BY_HOOKS = ("xception", "nasnet")
"""Names that say why a network is refused."""

_VIDEO, _LARGE_VIDEO = (1, 3, 8, 64, 64), (1, 3, 16, 224, 224)
_IMAGE = (1, 3, 96, 96)
_REGIONS = {"box": 7, "mask": 14, "keypoint": 14}


@dataclass(frozen=True)
class DenseModel:
    """A network of the walk.

    Args:
        name: ``library:name``, and which part of it or which of its outputs.
        kind: what it is for.
        build: makes it, with random weights.
        shape_of: network -> shape of the images, videos or regions that it is converted for.
        converts: whether it is to convert; else it is to be refused by name.
        stem: as `multiquantize` takes it.
    """

    name: str
    kind: str
    build: Callable[[], nn.Module]
    shape_of: Callable[[nn.Module], Shape]
    converts: bool = True
    stem: str | None = None


def dense_models(size: int = 96) -> dict[str, DenseModel]:
    """All of torchvision, and of timm one for each kind of classifier; name -> network.

    Args:
        size: of images for timm's.
    """
    everything = (*_maps(), *_detectors(), *_videos(), *_flows(), *_features(size))
    return {model.name: model for model in everything}


def _maps() -> Iterator[DenseModel]:
    for name in models.list_models(module=models.segmentation):
        yield DenseModel(f"tv:{name}", "segmentation", partial(_built, name), _always(_IMAGE))


def _detectors() -> Iterator[DenseModel]:
    for name in models.list_models(module=models.detection):
        shape = (1, 3, 300, 300) if name.startswith("ssd300") else _IMAGE
        build = partial(_dense_part, name)
        yield DenseModel(f"tv:{name}", "detection", build, _always(shape))
        for kind in KINDS if "rcnn" in name else ():
            if kind == "box" or name.startswith(kind):
                yield DenseModel(
                    *(f"tv:{name} {kind} head", "heads of regions"),
                    partial(_region_head, name, kind),
                    _always((1, 256, _REGIONS[kind], _REGIONS[kind])),
                    stem="none",
                )


def _videos() -> Iterator[DenseModel]:
    for name in models.list_models(module=models.video):
        small = _VIDEO if name.endswith("_18") else _LARGE_VIDEO
        converts = not name.startswith(ATTENTION)
        yield DenseModel(f"tv:{name}", "video", partial(_built, name), _always(small), converts)


def _flows() -> Iterator[DenseModel]:
    for name in models.list_models(module=models.optical_flow):
        shape = _always((1, 3, 128, 128))
        yield DenseModel(f"tv:{name}", "optical flow", partial(_built, name), shape, False)


def _features(size: int) -> Iterator[DenseModel]:
    shape = partial(small_shape, size=size)
    names = [name.partition(":")[2] for name in zoo().representatives if name.startswith("timm")]
    for name in names:
        hooked = any(kind in name for kind in BY_HOOKS)
        asked = partial(create_model, name, features_only=True)
        yield DenseModel(f"timm:{name} features", "features", asked, shape, not hooked)
        if hooked:
            other = partial(asked, feature_cls="getter")
            yield DenseModel(f"timm:{name} features by getter", "features", other, shape)
        pooled = partial(create_model, name, num_classes=0)
        yield DenseModel(f"timm:{name} pooled", "pooled features", pooled, shape)


def _always(shape: Shape) -> Callable[[nn.Module], Shape]:
    return lambda _: shape


def _built(name: str) -> nn.Module:
    """A model of torchvision with random weights, of its backbone too."""
    taken = inspect.signature(models.get_model_builder(name)).parameters
    loads = {option: None for option in ("weights", "weights_backbone") if option in taken}
    return models.get_model(name, **loads)


def _dense_part(name: str) -> nn.Module:
    return DensePart(_built(name))


def _region_head(name: str, kind: str) -> nn.Module:
    return region_head(_built(name), kind)
