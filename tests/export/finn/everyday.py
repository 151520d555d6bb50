"""Bodies of everyday networks, each with one thing that hardware computes in its own way."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CHANNELS = 8


def block(inputs: int, outputs: int, kernel: int = 3, stride: int = 1, act: type = nn.ReLU):
    """Convolution, norm, activation."""
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), act())


class Everyday(nn.Module):
    """A stem, a body from 8 to 8 channels, a pool over the whole map, a classifier.

    Args:
        body: the network and the stem's output -> features.
        layers: that the body calls, by name.
    """

    def __init__(self, body: Callable[["Everyday", Tensor], Tensor], **layers: nn.Module) -> None:
        super().__init__()
        self.stem, self.fc = block(3, CHANNELS), nn.Linear(CHANNELS, 5)
        self.body = body
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, 3, H, W) to logits (N, 5)."""
        return self.fc(self.body(self, self.stem(x)).mean((2, 3)))


def _excited(net: Everyday, x: Tensor) -> Tensor:
    x = net.a(x)
    gate = net.expand(torch.relu(net.reduce(x.mean((2, 3), keepdim=True))))
    return net.b(x * torch.sigmoid(gate))


def _excited_as_vectors(net: Everyday, x: Tensor) -> Tensor:
    x = net.a(x)
    gate = net.expand(torch.relu(net.reduce(F.adaptive_avg_pool2d(x, 1).flatten(1))))
    return net.b(x * F.hardsigmoid(gate).view(x.size(0), -1, 1, 1))


def _shuffled(net: Everyday, x: Tensor) -> Tensor:
    left, right = x.chunk(2, dim=1)
    x = torch.cat([left, net.a(right)], 1)
    n, c, h, w = x.shape
    return net.b(x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w))


def _split(net: Everyday, x: Tensor) -> Tensor:
    first, _, third = torch.split(net.a(x), [4, 2, 2], dim=1)
    return net.b(torch.cat([third, first], 1)[:, 1:5])


def _option_a(net: Everyday, x: Tensor) -> Tensor:
    shortcut = F.pad(x[:, :4, ::2, ::2], (0, 0, 0, 0, 2, 2))
    return torch.relu(net.a(x) + shortcut)


def _dense(net: Everyday, x: Tensor) -> Tensor:
    for layer in (net.a, net.b):
        x = torch.cat([x, layer(x)], 1)
    return net.c(torch.relu(net.norm(x)))


def _two_sizes(net: Everyday, x: Tensor) -> Tensor:
    return net.b(torch.cat([F.interpolate(net.a(x), scale_factor=2), x], 1))


def _before_activation(net: Everyday, x: Tensor) -> Tensor:
    return net.b(torch.relu(net.norm(x + net.a(x))))


def _scaled(net: Everyday, x: Tensor) -> Tensor:
    return net.b(x + net.gamma * net.a(x))


def _swish_by_hand(net: Everyday, x: Tensor) -> Tensor:
    x = net.a(x)
    return net.b(x * torch.sigmoid(x))


def _with_scale() -> Everyday:
    net = Everyday(_scaled, a=block(8, 8), b=block(8, 8))
    net.gamma = nn.Parameter(torch.randn(8, 1, 1))
    return net


def in_order(*layers: nn.Module) -> Everyday:
    """A body of layers one behind the other."""
    return Everyday(lambda net, x: net.layers(x), layers=nn.Sequential(*layers))


class Line(nn.Module):
    """Convolutions along a signal, in images of height 1; everything that torch has in 1-d."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *(nn.Flatten(2), nn.Conv1d(3, 8, 5, 2, 2), nn.BatchNorm1d(8), nn.LeakyReLU(0.2)),
            *(nn.MaxPool1d(3, 2, 1), nn.Conv1d(8, 8, 3, padding=1, groups=8), nn.BatchNorm1d(8)),
            *(
                nn.LeakyReLU(0.2),
                nn.AvgPool1d(2),
                nn.Conv1d(8, 8, 1),
                nn.BatchNorm1d(8),
                nn.LeakyReLU(0.2),
            ),
        )
        self.fc = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        """Signals (N, 3, 1, L) to logits (N, 5)."""
        return self.fc(self.layers(x).mean(-1))


def perceptron() -> nn.Module:
    """Linear layers alone, on images of 3 x 8 x 8."""
    hidden = [nn.Linear(192, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU()]
    return nn.Sequential(nn.Flatten(), *hidden, nn.Linear(16, 5))


BODIES: dict[str, Callable[[], Everyday]] = {
    "concatenation": lambda: Everyday(
        _dense, a=block(8, 4), b=block(12, 4), c=block(16, 8), norm=nn.BatchNorm2d(16)
    ),
    "channel shuffle": lambda: Everyday(_shuffled, a=block(4, 4), b=block(8, 8)),
    "split and slice": lambda: Everyday(_split, a=block(8, 8), b=block(4, 8)),
    "upsampling": lambda: Everyday(_two_sizes, a=block(8, 8, stride=2), b=block(16, 8)),
    "squeeze and excitation": lambda: Everyday(
        _excited, a=block(8, 8), b=block(8, 8), reduce=nn.Conv2d(8, 4, 1), expand=nn.Conv2d(4, 8, 1)
    ),
    "gates of vectors": lambda: Everyday(
        _excited_as_vectors,
        a=block(8, 8),
        b=block(8, 8),
        reduce=nn.Linear(8, 4),
        expand=nn.Linear(4, 8),
    ),
    "option A": lambda: Everyday(_option_a, a=block(8, 8, stride=2)),
    "norm before activation": lambda: Everyday(
        _before_activation, a=block(8, 8), b=block(8, 8), norm=nn.BatchNorm2d(8)
    ),
    "layer scale": _with_scale,
    "swish by hand": lambda: Everyday(
        _swish_by_hand, a=nn.Sequential(*block(8, 8)[:2]), b=block(8, 8)
    ),
    "silu": lambda: in_order(block(8, 8, act=nn.SiLU), block(8, 8, act=nn.Hardswish)),
    "gelu": lambda: in_order(block(8, 8, act=nn.GELU), block(8, 8, act=nn.Mish)),
    "average pool": lambda: in_order(block(8, 8), nn.AvgPool2d(3, 2, 1), block(8, 8)),
    "average pool in the stem": lambda: in_order(nn.AvgPool2d(2), block(8, 8)),
    "adaptive average pool": lambda: in_order(block(8, 8), nn.AdaptiveAvgPool2d(4), block(8, 8)),
    "adaptive pool to more": lambda: in_order(block(8, 8), nn.AdaptiveAvgPool2d(16), block(8, 8)),
    "zero padding": lambda: in_order(
        block(8, 8), nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(8, 8, 3, 2), nn.ReLU()
    ),
    "max pool over the edge": lambda: in_order(
        block(8, 8), nn.MaxPool2d(3, 2, ceil_mode=True), block(8, 8)
    ),
    "norm behind a max pool": lambda: in_order(
        nn.Conv2d(8, 8, 3), nn.MaxPool2d(2), nn.BatchNorm2d(8), nn.ReLU(), block(8, 8)
    ),
    "silu behind a max pool": lambda: in_order(
        nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.MaxPool2d(2), nn.SiLU(), block(8, 8)
    ),
    "norm behind relu": lambda: in_order(
        nn.Conv2d(8, 8, 3), nn.ReLU(), nn.BatchNorm2d(8), block(8, 8)
    ),
    "falling leaky relu": lambda: in_order(
        block(8, 8, act=lambda: nn.LeakyReLU(-0.3)), block(8, 8)
    ),
}
"""What it has -> a new network."""
