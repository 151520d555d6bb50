"""Small networks that cover what an export must carry; built once a session of tests."""

from functools import cache

import timm
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.models import mobilenet_v2

from brevitas_multiquant import MultiQuantNet, calibrate, multiquantize
from brevitas_multiquant.export.sample import smooth_images


class SqueezeExcite(nn.Module):
    """Channels weighted by a gate."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.gate = nn.Sequential(nn.Conv2d(channels, channels, 1), nn.Hardsigmoid())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``x`` times its gate."""
        return x * self.gate(self.pool(x))


def plain_cnn() -> nn.Module:
    """Bias, batch norm, squeeze-and-excitation."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 16, 3, stride=2, padding=1, bias=True),
        nn.ReLU(),
        SqueezeExcite(16),
        nn.Conv2d(16, 16, 3, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, 10),
    )


class Padding(nn.Module):
    """One row and column of zeros more."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``x``, padded."""
        return F.pad(x, (0, 1, 0, 1))


def resized_cnn() -> nn.Module:
    """Operations that leave inputs out: a padding at the end, a resize in between."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        Padding(),
        nn.Conv2d(8, 8, 2, bias=False),
        nn.Upsample(scale_factor=2, mode="nearest"),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 10),
    )


_MODELS = {
    "resized": (resized_cnn, 32),
    "plain": (plain_cnn, 16),
    "resnet": (lambda: timm.create_model("test_resnet", num_classes=10), 32),
    "mobilenet": (lambda: mobilenet_v2(width_mult=0.25, num_classes=10), 32),
}


@cache
def build(name: str, merge: str = "mean", bits: tuple[int, ...] = (2, 4, 6, 8)) -> MultiQuantNet:
    """A calibrated network in evaluation mode; not to be changed."""
    make, size = _MODELS[name]
    torch.manual_seed(0)
    net = multiquantize(make(), bits, merge=merge, input_shape=(1, 3, size, size))
    calibrate(net, [smooth_images((8, 3, size, size))])
    return net.eval()
