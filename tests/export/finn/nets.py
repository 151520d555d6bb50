"""Small networks of the finn profile, with norms of both signs; built once a session of tests."""

from functools import cache

import torch
from timm.models.resnet import BasicBlock, ResNet
from torch import Tensor, nn

from brevitas_multiquant import MultiQuantNet, calibrate, multiquantize
from brevitas_multiquant.export.sample import smooth_images


class Block(nn.Module):
    """Two convolutions and a shortcut."""

    def __init__(self, inputs: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.down = nn.Conv2d(inputs, channels, 1, stride) if stride > 1 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """``stride`` times smaller."""
        y = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(y)) + self.down(x))


class Residual(nn.Module):
    """An identity shortcut from the stem on, then one with a strided convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(6)
        self.layer1 = Block(6, 6, 1)
        self.layer2 = Block(6, 12, 2)
        self.fc = nn.Linear(12, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, 3, H, W) to logits (N, 10)."""
        x = self.layer2(self.layer1(torch.relu(self.bn(self.stem(x)))))
        return self.fc(x.mean((2, 3)))


class Bottleneck(nn.Module):
    """Depthwise convolution, max pool behind norms of both signs, average in the body, bias."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.bn = nn.BatchNorm2d(8)
        self.depthwise = nn.Conv2d(8, 8, 3, stride=2, padding=1, groups=8, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.expand = nn.Conv2d(8, 12, 1)
        self.bn2 = nn.BatchNorm2d(12)
        self.pool = nn.MaxPool2d(3, 2, 1)
        self.mix = nn.Linear(12, 12)
        self.fc = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, 3, H, W) to logits (N, 5)."""
        x = torch.relu(self.bn(self.stem(x)))
        x = torch.relu(self.bn1(self.depthwise(x)))
        x = self.pool(torch.relu(self.bn2(self.expand(x))))
        x = torch.relu(self.mix(x.mean((2, 3))))
        return self.fc(x)


class Flattened(nn.Module):
    """As a VGG: linear layers that read a whole map, one of them in the branches."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3)
        self.conv = nn.Conv2d(6, 8, 3, bias=False)
        self.bn = nn.BatchNorm2d(8)
        self.hidden = nn.Linear(8 * 4 * 4, 12)
        self.fc = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, 3, 12, 12) to logits (N, 5)."""
        x = torch.relu(self.bn(self.conv(torch.relu(self.stem(x)))))
        x = torch.flatten(nn.functional.max_pool2d(x, 2), 1)
        return self.fc(torch.relu(self.hidden(x)))


def small_resnet() -> nn.Module:
    """A ResNet-10 of timm: 7x7 stem, max pool, strided 1x1 shortcuts."""
    return ResNet(BasicBlock, (1, 1, 1, 1), num_classes=10, channels=(8, 8, 12, 16))


_MODELS = {
    "residual": (Residual, 8),
    "resnet": (small_resnet, 32),
    "flattened": (Flattened, 12),
    "bottleneck": (Bottleneck, 12),
}
NAMES = tuple(_MODELS)


def size_of(name: str) -> int:
    """Height and width of a network's images."""
    return _MODELS[name][1]


@cache
def build(
    name: str,
    merge: str = "mean",
    bits: tuple[int, ...] = (2, 4, 6, 8),
    negative: bool = True,
    weights: str = "odd",
) -> MultiQuantNet:
    """A calibrated network in evaluation mode; not to be changed."""
    make, size = _MODELS[name]
    torch.manual_seed(0)
    net = multiquantize(
        make(),
        bits,
        profile="finn",
        merge=merge,
        weights=weights,
        branch_init="shuffle",
        input_shape=(1, 3, size, size),
        check=False,
    )
    with torch.no_grad():
        for norm in net.modules():
            if isinstance(norm, nn.BatchNorm2d):
                norm.weight.normal_(1.0, 0.7)
                norm.bias.normal_(0.0, 0.3)
                if not negative:
                    norm.weight.abs_()
    calibrate(net, [smooth_images((8, 3, size, size))])
    return net.eval()


def images_for(name: str, count: int = 4) -> Tensor:
    """Images of a network's size."""
    return smooth_images((count, 3, size_of(name), size_of(name)))
