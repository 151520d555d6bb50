"""The paper's small networks for 32x32 images, registered with timm.

Importing this module is enough: ``timm.create_model("cifar_resnet20", num_classes=100)`` works from
then on. They follow timm's conventions (``forward_features``, ``forward_head``, ``get_classifier``,
``reset_classifier``), and their convolutions have no bias because a batch norm follows each.
"""

from typing import Any

import torch
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import Tensor, nn

from brevitas_multiquant.core.preprocessing import CIFAR_MEAN, CIFAR_STD

__all__ = ["CifarMobileNetV1", "CifarResNet", "CifarVGG"]

VGG11_STAGES = ((64,), (128,), (256, 256), (512, 512), (512, 512))
MOBILENET_V1_BLOCKS = (
    (64, 1),
    (128, 2),
    (128, 1),
    (256, 2),
    (256, 1),
    (512, 2),
    *((512, 1),) * 5,
    (1024, 2),
    (1024, 1),
)


def conv_bn(in_channels: int, channels: int, kernel_size: int, stride: int = 1) -> nn.Sequential:
    """A convolution that keeps the image size up to its stride, and the batch norm after it."""
    return nn.Sequential(
        nn.Conv2d(in_channels, channels, kernel_size, stride, kernel_size // 2, bias=False),
        nn.BatchNorm2d(channels),
    )


def init_weights(model: nn.Module) -> None:
    """Normal weights: std sqrt(2 / fan in) in convolutions (He et al.), sqrt(1 / fan in) else."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=module.in_features**-0.5)
            nn.init.zeros_(module.bias)


class _CifarNet(nn.Module):
    """What the three networks share: how features become logits, and timm's classifier methods.

    A subclass sets ``num_features``, ``global_pool``, ``head_drop`` and ``fc`` through
    ``_create_head`` and writes ``forward_features``.
    """

    def _create_head(self, num_features: int, num_classes: int, drop_rate: float) -> None:
        self.num_features = self.head_hidden_size = num_features
        self.num_classes = num_classes
        self.global_pool: nn.Module = nn.AdaptiveAvgPool2d(1)
        self.pre_logits: nn.Module = nn.Identity()
        self.head_drop = nn.Dropout(drop_rate)
        self.fc = self._create_classifier()

    def _create_classifier(self) -> nn.Module:
        if self.num_classes == 0:
            return nn.Identity()
        return nn.Linear(self.num_features, self.num_classes)

    def get_classifier(self) -> nn.Module:
        """The layer that emits the logits."""
        return self.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the classifier by a new one; ``num_classes=0`` takes it away.

        Raises:
            ValueError: for a pooling other than the global average.
        """
        if global_pool not in (None, "avg"):
            raise ValueError(f"expected global_pool 'avg' or None, got {global_pool!r}")
        self.num_classes = num_classes
        self.fc = self._create_classifier()

    def forward_features(self, x: Tensor) -> Tensor:
        """Images (N, C, H, W) to the last feature map."""
        raise NotImplementedError

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """The last feature map to logits (N, num_classes), or to what the classifier reads."""
        x = self.pre_logits(torch.flatten(self.global_pool(x), 1))
        x = self.head_drop(x)
        return x if pre_logits else self.fc(x)

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, C, H, W) to logits (N, num_classes)."""
        return self.forward_head(self.forward_features(x))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut: identity, or 1x1 convolution and norm on a new shape."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.act1 = nn.ReLU()
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        same_shape = stride == 1 and in_channels == channels
        self.downsample = None if same_shape else conv_bn(in_channels, channels, 1, stride)
        self.act2 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) to (N, channels, H / stride, W / stride)."""
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.act1(self.bn1(self.conv1(x)))
        return self.act2(self.bn2(self.conv2(x)) + shortcut)


class CifarResNet(_CifarNet):
    """ResNet for 32x32 images: stages of 16, 32 and 64 channels (He et al. 2015, section 4.2).

    Args:
        blocks: residual blocks a stage; the depth is ``6 * blocks + 2``.
        num_classes: number of logits, 0 for none.
        in_chans: channels of the images.
        drop_rate: dropout before the classifier, in [0, 1).
    """

    def __init__(
        self, blocks: int, num_classes: int = 10, in_chans: int = 3, drop_rate: float = 0.0
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_chans, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.act1 = nn.ReLU()
        self.layer1 = self._create_stage(16, 16, blocks, stride=1)
        self.layer2 = self._create_stage(16, 32, blocks, stride=2)
        self.layer3 = self._create_stage(32, 64, blocks, stride=2)
        self._create_head(64, num_classes, drop_rate)
        init_weights(self)

    @staticmethod
    def _create_stage(in_channels: int, channels: int, blocks: int, stride: int) -> nn.Sequential:
        first = BasicBlock(in_channels, channels, stride)
        return nn.Sequential(first, *(BasicBlock(channels, channels, 1) for _ in range(blocks - 1)))

    def forward_features(self, x: Tensor) -> Tensor:
        """(N, in_chans, H, W) to (N, 64, H / 4, W / 4)."""
        x = self.act1(self.bn1(self.conv1(x)))
        return self.layer3(self.layer2(self.layer1(x)))


class CifarVGG(_CifarNet):
    """VGG-11 with batch norm for 32x32 images: linear layers of 512, 512 and ``num_classes``.

    Args:
        num_classes: number of logits, 0 for none.
        in_chans: channels of the images.
        drop_rate: dropout after each hidden linear layer, in [0, 1).
    """

    def __init__(self, num_classes: int = 10, in_chans: int = 3, drop_rate: float = 0.0) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = in_chans
        for stage in VGG11_STAGES:
            for width in stage:
                layers += [*conv_bn(channels, width, 3), nn.ReLU()]
                channels = width
            layers.append(nn.MaxPool2d(2, 2))
        self.features = nn.Sequential(*layers)
        self._create_head(channels, num_classes, drop_rate)
        self.pre_logits = nn.Sequential(
            nn.Linear(channels, channels),
            nn.ReLU(),
            nn.Dropout(drop_rate),
            nn.Linear(channels, channels),
            nn.ReLU(),
        )
        init_weights(self)

    def forward_features(self, x: Tensor) -> Tensor:
        """(N, in_chans, H, W) to (N, 512, H / 32, W / 32)."""
        return self.features(x)


class DepthwiseSeparable(nn.Module):
    """A 3x3 convolution channel by channel, then a 1x1 convolution that mixes the channels."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv_dw = nn.Conv2d(
            in_channels, in_channels, 3, stride, 1, groups=in_channels, bias=False
        )
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.act1 = nn.ReLU()
        self.conv_pw = nn.Conv2d(in_channels, channels, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.act2 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) to (N, channels, H / stride, W / stride)."""
        x = self.act1(self.bn1(self.conv_dw(x)))
        return self.act2(self.bn2(self.conv_pw(x)))


def scaled_channels(channels: int, width: float) -> int:
    """A channel count times a multiplier, to the nearest multiple of 8 and at least that.

    >>> scaled_channels(32, 1.0), scaled_channels(32, 0.25), scaled_channels(32, 0.1)
    (32, 8, 8)
    """
    return max(8, 8 * round(channels * width / 8))


class CifarMobileNetV1(_CifarNet):
    """MobileNetV1 (Howard et al. 2017) for 32x32 images: the stem keeps the image size.

    Args:
        num_classes: number of logits, 0 for none.
        in_chans: channels of the images.
        drop_rate: dropout before the classifier, in [0, 1).
        width: the multiplier of all channel counts, above 0; the paper's alpha.
    """

    def __init__(
        self,
        num_classes: int = 10,
        in_chans: int = 3,
        drop_rate: float = 0.0,
        width: float = 1.0,
    ) -> None:
        super().__init__()
        channels = scaled_channels(32, width)
        self.conv_stem = nn.Conv2d(in_chans, channels, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.act1 = nn.ReLU()
        blocks: list[nn.Module] = []
        for out_channels, stride in MOBILENET_V1_BLOCKS:
            out_channels = scaled_channels(out_channels, width)
            blocks.append(DepthwiseSeparable(channels, out_channels, stride))
            channels = out_channels
        self.blocks = nn.Sequential(*blocks)
        self._create_head(channels, num_classes, drop_rate)
        init_weights(self)

    def forward_features(self, x: Tensor) -> Tensor:
        """(N, in_chans, H, W) to (N, 1024 * width, H / 16, W / 16)."""
        return self.blocks(self.act1(self.bn1(self.conv_stem(x))))


def cifar_cfg(first_conv: str) -> dict[str, Any]:
    """What timm is told of a network for 32x32 images, whose first layer has this name."""
    return {
        "url": "",
        "num_classes": 10,
        "input_size": (3, 32, 32),
        "pool_size": None,
        "crop_pct": 1.0,
        "interpolation": "bilinear",
        "mean": CIFAR_MEAN,
        "std": CIFAR_STD,
        "first_conv": first_conv,
        "classifier": "fc",
    }


default_cfgs = generate_default_cfgs(
    {
        "cifar_resnet8.untrained": cifar_cfg("conv1"),
        "cifar_resnet20.untrained": cifar_cfg("conv1"),
        "cifar_vgg11_bn.untrained": cifar_cfg("features.0"),
        "cifar_mobilenetv1.untrained": cifar_cfg("conv_stem"),
        "cifar_mobilenetv1_025.untrained": cifar_cfg("conv_stem"),
    }
)


@register_model
def cifar_resnet8(pretrained: bool = False, **kwargs: Any) -> CifarResNet:
    """ResNet-8 for 32x32 images: one residual block a stage."""
    return build_model_with_cfg(CifarResNet, "cifar_resnet8", pretrained, blocks=1, **kwargs)


@register_model
def cifar_resnet20(pretrained: bool = False, **kwargs: Any) -> CifarResNet:
    """ResNet-20 for 32x32 images: three residual blocks a stage."""
    return build_model_with_cfg(CifarResNet, "cifar_resnet20", pretrained, blocks=3, **kwargs)


@register_model
def cifar_vgg11_bn(pretrained: bool = False, **kwargs: Any) -> CifarVGG:
    """VGG-11 with batch norm for 32x32 images."""
    return build_model_with_cfg(CifarVGG, "cifar_vgg11_bn", pretrained, **kwargs)


@register_model
def cifar_mobilenetv1(pretrained: bool = False, **kwargs: Any) -> CifarMobileNetV1:
    """MobileNetV1 for 32x32 images."""
    return build_model_with_cfg(CifarMobileNetV1, "cifar_mobilenetv1", pretrained, **kwargs)


@register_model
def cifar_mobilenetv1_025(pretrained: bool = False, **kwargs: Any) -> CifarMobileNetV1:
    """MobileNetV1 for 32x32 images with a quarter of the channels."""
    model_args = {"width": 0.25, **kwargs}
    return build_model_with_cfg(CifarMobileNetV1, "cifar_mobilenetv1_025", pretrained, **model_args)
