"""Everyday edge networks as functions that make a new one, its weights drawn anew."""

from collections.abc import Callable
from itertools import pairwise

from torch import Tensor, nn

from benchmarks.edge_blocks import Ended, Inverted, Residual, conv, depthwise, pooled

Make = Callable[[], nn.Module]
MakeLayers = Callable[[], list[nn.Module]]


def hidden(inputs: int, outputs: int) -> list[nn.Module]:
    """A linear layer with a norm."""
    return [nn.Linear(inputs, outputs, bias=False), nn.BatchNorm1d(outputs), nn.ReLU()]


def activated(act: Callable[[], nn.Module]) -> Make:
    """A small classifier with one activation everywhere."""
    layers = lambda: [conv(3, 8, act=act), conv(8, 16, stride=2, act=act), conv(16, 16, act=act)]  # noqa: E731
    return lambda: nn.Sequential(*layers(), *pooled(16))


def lenet(pool: type[nn.Module], act: type[nn.Module]) -> Make:
    """LeNet-5 without norms."""
    return lambda: nn.Sequential(
        *(nn.Conv2d(1, 6, 5, padding=2), act(), pool(2), nn.Conv2d(6, 16, 5), act(), pool(2)),
        *(nn.Flatten(), nn.Linear(400, 120), act(), nn.Linear(120, 84), act(), nn.Linear(84, 10)),
    )


def ended(end: Callable[[Tensor], Tensor]) -> Make:
    """A small body with that end."""
    return lambda: Ended(nn.Sequential(conv(3, 8, stride=2), conv(8, 16, stride=2)), 16, end)


def resnet(shortcut: str = "B", first: bool = False, size: int = 8) -> Make:
    """Three stages of one block."""

    def make() -> nn.Module:
        stem = nn.Conv2d(3, size, 3, padding=1, bias=False) if first else conv(3, size)
        widths = (size, size, 2 * size, 4 * size)
        blocks = [Residual(a, b, shortcut, first) for a, b in pairwise(widths)]
        end = [nn.BatchNorm2d(4 * size), nn.ReLU()] if first else []
        return nn.Sequential(stem, *blocks, *end, *pooled(4 * size))

    return make


def inverted(act: Callable[[], nn.Module] = nn.ReLU6, gate: nn.Module | None = None) -> Make:
    """A MobileNet of three such blocks."""
    return lambda: nn.Sequential(
        conv(3, 8, stride=2, act=act),
        *(Inverted(8, 8, 1, act, gate), Inverted(8, 12, 2, act), Inverted(12, 12, 1, act, gate)),
        *(conv(12, 32, 1, act=act), *pooled(32)),
    )


def vgg(pool: nn.Module, norm: bool = True) -> Make:
    """Convolutions and pools, then linear layers that read the whole map."""

    def block(inputs: int, outputs: int) -> list[nn.Module]:
        plain = [nn.Conv2d(inputs, outputs, 3, padding=1), nn.ReLU()]
        return [conv(inputs, outputs) if norm else nn.Sequential(*plain), pool]

    return lambda: nn.Sequential(
        *(*block(3, 8), *block(8, 16), *block(16, 16), nn.Flatten()),
        *(*hidden(256, 32), nn.Dropout(0.5), nn.Linear(32, 10)),
    )


def between(layers: MakeLayers, channels: int = 16, stride: int = 1) -> Make:
    """Layers behind a stem and a convolution."""
    return lambda: nn.Sequential(
        *(conv(3, 8, stride=stride), conv(8, 16, stride=2), *layers(), *pooled(channels))
    )


def keywords(end: MakeLayers) -> Make:
    """Depthwise keyword spotting on 49 frames of 10 coefficients."""
    return lambda: nn.Sequential(
        *(nn.Conv2d(1, 16, (10, 4), 2, (5, 1), bias=False), nn.BatchNorm2d(16), nn.ReLU()),
        *(nn.Dropout(0.2), depthwise(16, 16), depthwise(16, 16), nn.Dropout(0.4), *end()),
    )


def perceptron(*widths: int) -> Make:
    """Linear layers alone."""

    def make() -> nn.Module:
        pairs = pairwise(widths[:-1])
        inner = [layer for inputs, outputs in pairs for layer in hidden(inputs, outputs)]
        return nn.Sequential(nn.Flatten(), *inner, nn.Linear(*widths[-2:]))

    return make


def signal(channels: int, end: MakeLayers) -> Make:
    """Convolutions along a line, of images of height 1."""

    def layer(
        inputs: int, outputs: int, kernel: int, stride: int, groups: int = 1
    ) -> list[nn.Module]:
        padding = kernel // 2
        conv1d = nn.Conv1d(inputs, outputs, kernel, stride, padding, groups=groups, bias=False)
        return [conv1d, nn.BatchNorm1d(outputs), nn.ReLU()]

    return lambda: nn.Sequential(
        *(nn.Flatten(2), *layer(channels, 8, 7, 2), nn.MaxPool1d(2), *layer(8, 8, 5, 2, 8)),
        *(*layer(8, 16, 1, 1), *end()),
    )


def cnv() -> nn.Module:
    widths, layers = (3, 16, 16, 32, 32, 64, 64), []
    for place, (inputs, outputs) in enumerate(pairwise(widths)):
        layers += [nn.Conv2d(inputs, outputs, 3, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
        layers += [nn.MaxPool2d(2)] if place in (1, 3) else []
    return nn.Sequential(*layers, nn.Flatten(), *hidden(64, 64), nn.Linear(64, 10))
