"""Second stages of torchvision's detectors: heads that read features of regions."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from brevitas_multiquant.errors import CalibrationError, ConfigError, UnsupportedModelError
from brevitas_multiquant.methods.detection import with_replaced

KINDS = ("box", "mask", "keypoint")
"""What the heads of Faster, Mask and Keypoint R-CNN find in a region."""


def region_head(detector: nn.Module, kind: str) -> nn.Sequential:
    """Features of regions (N, C, h, w) -> what one head of the second stage gives.

    It converts as a network of its own, of which every layer has 2-bit weights with
    ``stem="none"``: it reads features, no image.

    Args:
        detector: of ``torchvision.models.detection``, of two stages; its layers are shared.
        kind: of `KINDS`.

    Raises:
        ConfigError: no such kind.
        UnsupportedModelError: the detector has no such head.

    Example:
        >>> from torchvision.models.detection import maskrcnn_resnet50_fpn_v2
        >>> from brevitas_multiquant import multiquantize
        >>> detector = maskrcnn_resnet50_fpn_v2(weights=None, weights_backbone=None)
        >>> head = region_head(detector, "mask")
        >>> net = multiquantize(head, [2], input_shape=(1, 256, 14, 14), stem="none")
        >>> with_region_head(detector, "mask", net).roi_heads.mask_head is net
        True
    """
    holder = _holder(detector, kind)
    return nn.Sequential(*(getattr(holder, name) for name in _names(kind)))


def with_region_head(detector: nn.Module, kind: str, net: nn.Module) -> nn.Module:
    """The detector with a network in place of one head of its second stage.

    Args:
        detector: not changed; networks that it has already are shared.
        kind: of `KINDS`.
        net: made of `region_head`; the head runs at its bits.

    Raises:
        ConfigError, UnsupportedModelError: as of `region_head`.
    """
    holder = _holder(detector, kind)
    head, predictor = (id(getattr(holder, name)) for name in _names(kind))
    return with_replaced(detector, {head: net, predictor: nn.Identity()})


def _names(kind: str) -> tuple[str, str]:
    return f"{kind}_head", f"{kind}_predictor"


def _holder(detector: nn.Module, kind: str) -> Any:
    if kind not in KINDS:
        raise ConfigError(f"kind: expected one of {list(KINDS)}, got {kind!r}")
    holder = getattr(detector, "roi_heads", None)
    if not all(isinstance(getattr(holder, name, None), nn.Module) for name in _names(kind)):
        raise UnsupportedModelError(
            type(detector).__name__,
            [f"expected a detector of torchvision with a {kind} head, got one without"],
        )
    return holder


def region_features(
    detector: nn.Module,
    kind: str,
    images: Sequence[Tensor],
    targets: Sequence[Mapping[str, Tensor]] | None = None,
) -> Tensor:
    """What a head reads of images, as `brevitas_multiquant.calibrate` of its network needs it.

    Args:
        detector: of two stages, in training mode where there are targets; runs once, and is not
            changed but for running statistics of its norms.
        kind: of `KINDS`.
        images: as the detector takes them, (C, H, W) each.
        targets: as it takes them in training: regions are those that it learns from.

    Returns:
        Features (N, C, h, w) of the regions.

    Raises:
        ConfigError, UnsupportedModelError: as of `region_head`.
        CalibrationError: no regions were found in these images.
    """
    head = getattr(_holder(detector, kind), _names(kind)[0])
    read: list[Tensor] = []
    handle = head.register_forward_pre_hook(lambda _, given: read.append(given[0].detach()))
    try:
        with torch.no_grad():
            detector(list(images), targets) if targets else detector(list(images))
    finally:
        handle.remove()
    features = torch.cat(read) if read else torch.empty(0)
    if not len(features):
        raise CalibrationError(
            f"region_features: expected images in which the detector finds regions for its {kind} "
            "head, got none: pass targets, with the detector in training mode"
        )
    return features
