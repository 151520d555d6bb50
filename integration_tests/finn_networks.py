"""Small networks of the operations that FPGAs have, for the tests that need FINN."""

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

from brevitas_multiquant import Assignment, calibrate, multiquantize


class Block(nn.Module):
    """Two convolutions and a shortcut."""

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.down = nn.Conv2d(channels_in, channels, 1, stride) if stride > 1 else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Half the size for a stride of 2."""
        y = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(y)) + self.down(x))


def narrow_resnet() -> nn.Module:
    """Identity shortcut from the stem, and one with a strided convolution."""
    stem = [nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU()]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10)]
    return nn.Sequential(*stem, Block(4, 4, 1), Block(4, 8, 2), *head)


def narrow_mobilenet() -> nn.Module:
    """Depthwise convolutions, a max pool, a hidden linear layer in the branches."""
    return nn.Sequential(
        *(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()),
        *(nn.Conv2d(8, 8, 3, 2, 1, groups=8), nn.BatchNorm2d(8), nn.ReLU()),
        *(nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 10)),
    )


def narrow_cnn() -> nn.Module:
    """Two convolutions in the branch."""
    convolutions = [nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU()]
    for stride in (1, 2):
        conv = nn.Conv2d(4, 4, 3, stride, 1, bias=False)
        convolutions += [conv, nn.BatchNorm2d(4), nn.ReLU()]
    return nn.Sequential(*convolutions, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10))


def wide_cnn() -> nn.Module:
    """4,608 products a sum: of 8-bit weights and activations they can pass 2**24."""
    norm = nn.BatchNorm2d(4)
    norm.running_mean[0] = 290.0  # times 255 * 255, the units of a sum, that is where codes start
    return nn.Sequential(
        *(nn.Conv2d(3, 512, 1), nn.BatchNorm2d(512), nn.ReLU()),
        *(nn.Conv2d(512, 4, 3, 2, bias=False), norm, nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10)),
    )


class PutTogether(nn.Module):
    """Channels split, shuffled and concatenated; a shortcut of slices and zeros; odd padding."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.side = conv(3, 8), conv(4, 4)
        self.down = nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(8, 12, 3, 2), nn.ReLU())
        self.last, self.fc = conv(24, 8), nn.Linear(8, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Images (N, 3, 8, 8) to logits."""
        left, right = self.stem(x).chunk(2, 1)
        x = torch.cat([left, self.side(right)], 1)
        n, c, h, w = x.shape
        x = x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
        shortcut = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2))
        down = self.down(x)
        return self.fc(self.last(torch.cat([down, down + shortcut], 1)).mean((2, 3)))


class Gated(nn.Module):
    """Activations that fall and rise, a gate for each channel, two scales, averages of windows."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.wide = conv(3, 8), conv(8, 8, nn.SiLU)
        self.reduce, self.expand = nn.Conv2d(8, 4, 1), nn.Conv2d(4, 8, 1)
        self.last, self.fc = conv(8, 8, nn.Hardswish), nn.Linear(8, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Images (N, 3, 8, 8) to logits."""
        x = self.wide(self.stem(x))
        gate = self.expand(torch.relu(self.reduce(x.mean((2, 3), keepdim=True))))
        x = x * torch.sigmoid(gate)
        x = x + F.interpolate(F.avg_pool2d(x, 2), scale_factor=2)
        return self.fc(self.last(x).mean((2, 3)))


class Pixels(nn.Module):
    """A class for each pixel: half the size and back, beside what was there before."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.last, self.classes = conv(3, 8), conv(16, 8), nn.Conv2d(8, 3, 1)
        self.down = nn.Sequential(nn.Conv2d(8, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Images (N, 3, 8, 8) to logits (N, 3, 8, 8)."""
        x = self.stem(x)
        up = F.interpolate(self.down(x), scale_factor=2)
        return self.classes(self.last(torch.cat([x, up], 1)))


def conv(inputs: int, outputs: int, act: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    """Convolution, norm, activation."""
    layer = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
    return nn.Sequential(layer, nn.BatchNorm2d(outputs), act())


def digits(count: int) -> torch.Tensor:
    """Handwritten digits of all ten classes, 3x8x8."""
    data, labels = load_digits(return_X_y=True)
    assert len(set(labels[:count])) >= 3
    images = torch.tensor(data[:count], dtype=torch.float32).view(-1, 1, 8, 8)
    return (images / 8 - 1).repeat(1, 3, 1, 1)


def network(model: nn.Module, bits: list[int] | Assignment, negative: bool, **options: str):
    """Calibrated, with norms of random scales."""
    net = multiquantize(
        model,
        bits,
        profile="finn",
        branch_init="shuffle",
        input_shape=(1, 3, 8, 8),
        **options,
    )
    with torch.no_grad():
        for norm in net.modules():
            if isinstance(norm, nn.BatchNorm2d):
                norm.weight.normal_(1.0, 0.6)
                norm.bias.normal_(0.0, 0.3)
                if not negative:
                    norm.weight.abs_()
    calibrate(net, [digits(64)])
    return net.eval()
