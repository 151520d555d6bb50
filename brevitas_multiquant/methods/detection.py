"""Detectors of torchvision: backbone, pyramid and heads are a network, the rest stays as it is.

What stays outside are the transform of images, the anchors, the losses, and the choice of boxes. Of
detectors of two stages, that is the first; the second are the heads of `region_heads`.
"""

import copy
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from brevitas_multiquant.errors import UnsupportedModelError
from brevitas_multiquant.nn.network import MultiQuantNet


class DensePart(nn.Module):
    """Images (N, C, H, W) -> what the heads of a detector give.

    Of one stage (SSD, RetinaNet, FCOS) those of its head; of two stages (Faster, Mask and Keypoint
    R-CNN) ``{"features": ..., "proposals": ...}``, maps of the pyramid and what proposes regions.

    Args:
        detector: of ``torchvision.models.detection``; its backbone and head are shared.

    Raises:
        UnsupportedModelError: a model without a backbone and a head.
    """

    backbone: nn.Module
    head: nn.Module

    def __init__(self, detector: nn.Module) -> None:
        super().__init__()
        backbone: Any = getattr(detector, "backbone", None)
        head: Any = getattr(_holder_of_head(detector), "head", None)
        if not isinstance(backbone, nn.Module) or not isinstance(head, nn.Module):
            raise UnsupportedModelError(
                type(detector).__name__,
                [
                    "expected a detector of torchvision, with a backbone and a head or an rpn; of "
                    "another one convert the parts: "
                    "detector.backbone = multiquantize(detector.backbone, ...)"
                ],
            )
        self.backbone, self.head = backbone, head
        self.two_stages = _holder_of_head(detector) is not detector

    def forward(self, images: Tensor) -> Any:
        """The outputs of the heads, behind the features where there is a second stage."""
        features = self.backbone(images)
        outputs = self.head(_levels(features))
        return {"features": features, "proposals": outputs} if self.two_stages else outputs


def _holder_of_head(detector: nn.Module) -> Any:
    """What has the head of the first stage: the detector, or its network of proposals."""
    return getattr(detector, "rpn", detector)


def _levels(features: Any) -> list[Tensor]:
    return [features] if isinstance(features, Tensor) else list(features.values())


def with_network(detector: nn.Module, net: nn.Module) -> nn.Module:
    """The detector, with a network in place of its backbone and head.

    Args:
        detector: of torchvision; not changed.
        net: made by ``multiquantize(DensePart(detector), ...)``; the detector runs at its bits.

    Returns:
        A detector that takes and gives what the author's does: detections, or losses in training.

    Example:
        >>> from torchvision.models.detection import ssdlite320_mobilenet_v3_large
        >>> from brevitas_multiquant import calibrate, multiquantize
        >>> float_one = ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None)
        >>> shape = (1, 3, 320, 320)
        >>> net = multiquantize(DensePart(float_one), [2], input_shape=shape, check=False)
        >>> calibrate(net, [torch.rand(2, 3, 320, 320)])
        >>> detector = with_network(float_one, net).eval()
        >>> sorted(detector([torch.rand(3, 240, 200)])[0])
        ['boxes', 'labels', 'scores']
    """
    part = DensePart(detector)
    backbone = _Features(net) if part.two_stages else _Levels(part.backbone, net)
    replaced = {id(part.backbone): backbone, id(part.head): _head_of(part.head)}
    return with_replaced(detector, replaced)


def with_replaced(detector: nn.Module, replaced: Mapping[int, nn.Module]) -> nn.Module:
    """A copy of a detector that shares the networks in it.

    Args:
        detector: not changed.
        replaced: id of a module -> what the copy has in its place.
    """
    shared = {id(m): m for m in detector.modules() if isinstance(m, MultiQuantNet)}
    return copy.deepcopy(detector, {**shared, **replaced})  # type: ignore[arg-type]


class _Levels(nn.Module):
    """Stands for the backbone: tensors without memory, as large as the pyramid's.

    Anchors need the sizes of the feature maps alone. The network's outputs go with the first one.
    """

    def __init__(self, backbone: nn.Module, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self._sizes = (copy.deepcopy(backbone).to("meta").eval(),)  # no child: it has no tensors

    def forward(self, images: Tensor) -> "OrderedDict[str, Tensor]":
        outputs = self.net(images)
        with torch.no_grad():
            sizes = _levels(self._sizes[0](torch.empty_like(images, device="meta")))
        levels = [images.new_zeros(1).expand(size.shape) for size in sizes]
        levels[0].outputs = outputs  # type: ignore[attr-defined]
        return OrderedDict((str(index), level) for index, level in enumerate(levels))


class _Features(nn.Module):
    """Stands for the backbone of two stages; what proposes regions goes with the first level."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, images: Tensor) -> Any:
        outputs = self.net(images)
        features = outputs["features"]
        _levels(features)[0].outputs = outputs["proposals"]  # type: ignore[attr-defined]
        return features


def _outputs_of(levels: list[Tensor]) -> Any:
    return levels[0].outputs  # type: ignore[attr-defined]


def _head_of(head: nn.Module) -> nn.Module:
    """The author's head without layers: its losses, and the outputs that are there already."""
    shell = copy.deepcopy(head)
    for name, module in list(shell.named_modules()):
        if name and next(module.parameters(recurse=False), None) is not None:
            parent, _, leaf = name.rpartition(".")
            setattr(shell.get_submodule(parent), leaf, nn.Identity())
    shell.forward = _outputs_of  # type: ignore[method-assign, assignment]
    return shell
