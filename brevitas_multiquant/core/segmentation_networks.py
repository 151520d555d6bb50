"""A small network that tells the class of every pixel, registered with timm.

Importing this module is enough: ``timm.create_model("cifar_fcn_resnet8", num_classes=4)`` works
from then on.
"""

from typing import Any

import torch.nn.functional as F
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import Tensor, nn

from brevitas_multiquant.core.cifar_networks import CifarResNet, cifar_cfg


class CifarFCN(nn.Module):
    """A fully convolutional network (Long et al. 2015) on the features of a CIFAR ResNet.

    Args:
        blocks: residual blocks a stage of the backbone.
        num_classes: of the pixels, the background included.
        in_chans: channels of the images.
    """

    def __init__(self, blocks: int, num_classes: int = 4, in_chans: int = 3) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.backbone = CifarResNet(blocks, num_classes=0, in_chans=in_chans)
        self.score = nn.Conv2d(self.backbone.num_features, num_classes, 1)

    def get_classifier(self) -> nn.Module:
        """The layer that emits the scores."""
        return self.score

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, in_chans, H, W) to logits of every pixel (N, num_classes, H, W).

        H and W are multiples of 4.
        """
        scores = self.score(self.backbone.forward_features(x))
        return F.interpolate(scores, scale_factor=4.0, mode="bilinear")


default_cfgs = generate_default_cfgs(
    {"cifar_fcn_resnet8.untrained": {**cifar_cfg("backbone.conv1"), "classifier": "score"}}
)


@register_model
def cifar_fcn_resnet8(pretrained: bool = False, **kwargs: Any) -> CifarFCN:
    """FCN on ResNet-8: scores of a quarter of the image size, bilinearly enlarged."""
    return build_model_with_cfg(CifarFCN, "cifar_fcn_resnet8", pretrained, blocks=1, **kwargs)
