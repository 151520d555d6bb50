"""Networks as people put them on small hardware, and what becomes of each in the finn profile.

Hand-written, narrow versions of what is usual: classifiers of digits and photographs, keyword
spotting on spectrograms and on raw features, signals, perceptrons, and the building blocks of the
well-known families. `EDGE` is the list; `benchmarks.finn_edge` makes the table of docs/finn.md.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Make = Callable[[], nn.Module]
DIGITS, PHOTOS, SPECTROGRAM = (1, 1, 28, 28), (1, 3, 32, 32), (1, 1, 49, 10)


@dataclass(frozen=True)
class EdgeNetwork:
    """One network.

    Args:
        name: in the table.
        make: a new one.
        input_shape: (1, C, H, W).
        advice: words of the refusal that tells what to use instead; None: it maps.
    """

    name: str
    make: Make
    input_shape: tuple[int, ...]
    advice: str | None = None


def conv(
    inputs: int,
    outputs: int,
    kernel: int | tuple[int, int] = 3,
    stride: int | tuple[int, int] = 1,
    groups: int = 1,
    act: Callable[[], nn.Module] = nn.ReLU,
) -> nn.Sequential:
    """Convolution that keeps the size at stride 1, norm, activation."""
    height, width = kernel if isinstance(kernel, tuple) else (kernel, kernel)
    padding = (height // 2, width // 2)
    layer = nn.Conv2d(inputs, outputs, kernel, stride, padding, groups=groups, bias=False)
    return nn.Sequential(layer, nn.BatchNorm2d(outputs), act())


def depthwise(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    """A filter for each channel, then a mix of channels."""
    return nn.Sequential(conv(inputs, inputs, 3, stride, groups=inputs), conv(inputs, outputs, 1))


def pooled(channels: int, classes: int = 10) -> list[nn.Module]:
    """The usual end."""
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes)]


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


class DigitsExample(nn.Module):
    """The example that everybody starts from: functions, dropout, a log-softmax."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 16, 3), nn.Conv2d(16, 16, 3)
        self.fc1, self.fc2 = nn.Linear(16 * 144, 32), nn.Linear(32, 10)
        self.dropout = nn.Dropout(0.25)

    def forward(self, x: Tensor) -> Tensor:
        """Features or logits of ``x`` (N, C, H, W)."""
        x = F.max_pool2d(F.relu(self.conv2(F.relu(self.conv1(x)))), 2)
        x = F.relu(self.fc1(torch.flatten(self.dropout(x), 1)))
        return F.log_softmax(self.fc2(self.dropout(x)), dim=1)


class Ended(nn.Module):
    """A body, and an end in the author's own words."""

    def __init__(self, body: nn.Module, channels: int, end: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.body, self.end, self.fc = body, end, nn.Linear(channels, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Features or logits of ``x`` (N, C, H, W)."""
        return self.fc(self.end(self.body(x)))


def ended(end: Callable[[Tensor], Tensor]) -> Make:
    """A small body with that end."""
    return lambda: Ended(nn.Sequential(conv(3, 8, stride=2), conv(8, 16, stride=2)), 16, end)


class Residual(nn.Module):
    """A block with a shortcut of some kind.

    Args:
        inputs: channels that come in.
        outputs: channels that go out, at stride 2 if they are more.
        shortcut: ``"B"``, a convolution; ``"A"``, a slice and zeros; ``"D"``, a pool in front.
        first: whether norms stand before convolutions.
    """

    def __init__(self, inputs: int, outputs: int, shortcut: str = "B", first: bool = False) -> None:
        super().__init__()
        self.stride = 1 if inputs == outputs else 2
        self.first, self.more = first, outputs - inputs
        self.norm1 = nn.BatchNorm2d(inputs if first else outputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, self.stride, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.down: nn.Module = nn.Identity()
        if self.more and shortcut == "B":
            self.down = nn.Conv2d(inputs, outputs, 1, 2, bias=False)
        elif self.more and shortcut == "D":
            self.down = nn.Sequential(nn.AvgPool2d(2), nn.Conv2d(inputs, outputs, 1, bias=False))
        self.slices = bool(self.more) and shortcut == "A"

    def forward(self, x: Tensor) -> Tensor:
        """Features or logits of ``x`` (N, C, H, W)."""
        if self.first:
            y = torch.relu(self.norm1(x))
            return self.conv2(torch.relu(self.norm2(self.conv1(y)))) + self.down(x)
        y = self.norm2(self.conv2(torch.relu(self.norm1(self.conv1(x)))))
        if self.slices:
            half = self.more // 2
            x = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, half, half))
        return torch.relu(y + self.down(x))


def resnet(shortcut: str = "B", first: bool = False, size: int = 8) -> Make:
    """Three stages of one block."""

    def make() -> nn.Module:
        stem = nn.Conv2d(3, size, 3, padding=1, bias=False) if first else conv(3, size)
        widths = (size, size, 2 * size, 4 * size)
        blocks = [Residual(a, b, shortcut, first) for a, b in pairwise(widths)]
        end = [nn.BatchNorm2d(4 * size), nn.ReLU()] if first else []
        return nn.Sequential(stem, *blocks, *end, *pooled(4 * size))

    return make


class Excitation(nn.Module):
    """A gate for each channel."""

    def __init__(self, channels: int, gate: nn.Module, act: nn.Module) -> None:
        super().__init__()
        self.reduce, self.expand = nn.Conv2d(channels, 4, 1), nn.Conv2d(4, channels, 1)
        self.gate, self.act = gate, act

    def forward(self, x: Tensor) -> Tensor:
        """Features or logits of ``x`` (N, C, H, W)."""
        means = x.mean((2, 3), keepdim=True)
        return x * self.gate(self.expand(self.act(self.reduce(means))))


class Inverted(nn.Module):
    """Wide in the middle, narrow at its ends, with a shortcut where they agree."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        stride: int,
        act: Callable[[], nn.Module] = nn.ReLU6,
        gate: nn.Module | None = None,
    ) -> None:
        super().__init__()
        wide = 3 * inputs
        self.layers = nn.Sequential(
            conv(inputs, wide, 1, act=act),
            conv(wide, wide, 3, stride, groups=wide, act=act),
            *([] if gate is None else [Excitation(wide, gate, nn.ReLU())]),
            *conv(wide, outputs, 1)[:2],
        )
        self.shortcut = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """Features or logits of ``x`` (N, C, H, W)."""
        y = self.layers(x)
        return x + y if self.shortcut else y


def inverted(act: Callable[[], nn.Module] = nn.ReLU6, gate: nn.Module | None = None) -> Make:
    """A MobileNet of three such blocks."""
    return lambda: nn.Sequential(
        conv(3, 8, stride=2, act=act),
        *(Inverted(8, 8, 1, act, gate), Inverted(8, 12, 2, act), Inverted(12, 12, 1, act, gate)),
        *(conv(12, 32, 1, act=act), *pooled(32)),
    )


class Dense(nn.Module):
    """Everything so far beside what is new."""

    def __init__(self, inputs: int, growth: int) -> None:
        super().__init__()
        self.norm, self.conv = nn.BatchNorm2d(inputs), nn.Conv2d(inputs, growth, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Features or logits of ``x`` (N, C, H, W)."""
        return torch.cat([x, self.conv(torch.relu(self.norm(x)))], 1)


class Fire(nn.Module):
    """Few channels, then two widths of kernel side by side."""

    def __init__(self, inputs: int, squeezed: int, outputs: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(inputs, squeezed, 1)
        self.one, self.three = (
            nn.Conv2d(squeezed, outputs, 1),
            nn.Conv2d(squeezed, outputs, 3, 1, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Features or logits of ``x`` (N, C, H, W)."""
        x = F.relu(self.squeeze(x))
        return torch.cat([F.relu(self.one(x)), F.relu(self.three(x))], 1)


class Shuffled(nn.Module):
    """Half of the channels pass, the other half is convolved, then both are shuffled."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.layers = nn.Sequential(conv(half, half, 1), conv(half, half, groups=half))

    def forward(self, x: Tensor) -> Tensor:
        """Features or logits of ``x`` (N, C, H, W)."""
        left, right = x.chunk(2, dim=1)
        x = torch.cat([left, self.layers(right)], 1)
        batch, channels, height, width = x.size()
        x = x.view(batch, 2, channels // 2, height, width).transpose(1, 2)
        return x.reshape(batch, channels, height, width)


class Ghost(nn.Module):
    """Some channels by a convolution, the others cheaply from those."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.outputs, half = outputs, -(-outputs // 2)
        self.first, self.cheap = conv(inputs, half, 1), conv(half, half, groups=half)

    def forward(self, x: Tensor) -> Tensor:
        """Features or logits of ``x`` (N, C, H, W)."""
        x = self.first(x)
        return torch.cat([x, self.cheap(x)], 1)[:, : self.outputs]


class Partial(nn.Module):
    """A part of the channels goes through blocks, all parts are put together."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.split, self.block = conv(channels, channels, 1), Residual(half, half)
        self.join = conv(channels + half, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Features or logits of ``x`` (N, C, H, W)."""
        left, right = self.split(x).split([x.shape[1] // 2, x.shape[1] // 2], 1)
        return self.join(torch.cat([left, right, self.block(right)], 1))


class Scales(nn.Module):
    """Coarse features brought back to fine ones, as in the neck of a detector."""

    def __init__(self, join: str) -> None:
        super().__init__()
        self.fine, self.coarse = conv(3, 8, stride=2), conv(8, 8, stride=2)
        self.up, self.join = nn.Upsample(scale_factor=2, mode="nearest"), join
        self.last = conv(16 if join == "cat" else 8, 16, stride=2)
        self.end = nn.Sequential(*pooled(16))

    def forward(self, x: Tensor) -> Tensor:
        """Features or logits of ``x`` (N, C, H, W)."""
        fine = self.fine(x)
        coarse = self.up(self.coarse(fine))
        both = torch.cat([fine, coarse], 1) if self.join == "cat" else fine + coarse
        return self.end(self.last(both))


class Inception(nn.Module):
    """Kernels of several sizes and a pool side by side."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.one, self.three = conv(inputs, 4, 1), conv(inputs, 8, 3)
        self.five, self.pool = conv(inputs, 4, 5), conv(inputs, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Features or logits of ``x`` (N, C, H, W)."""
        largest = F.max_pool2d(x, 3, 1, 1)
        return torch.cat([self.one(x), self.three(x), self.five(x), self.pool(largest)], 1)


class Scaled(nn.Module):
    """A residual branch with a factor for each channel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            conv(channels, channels, 5, groups=channels), conv(channels, channels, 1)
        )
        self.gamma = nn.Parameter(torch.linspace(-0.5, 1, channels).view(-1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Features or logits of ``x`` (N, C, H, W)."""
        return x + self.gamma * self.layers(x)


class TwoStreams(nn.Module):
    """Products of two maps."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.left, self.right = nn.Conv2d(channels, 16, 1), nn.Conv2d(channels, 16, 1)
        self.mix = nn.Conv2d(16, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Features or logits of ``x`` (N, C, H, W)."""
        return x + self.mix(F.relu6(self.left(x)) * self.right(x))


class Attention(nn.Module):
    """Weighs positions against each other."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.query, self.value = nn.Conv2d(channels, 1, 1), nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Features or logits of ``x`` (N, C, H, W)."""
        return self.value(x) * self.query(x)


def vgg(pool: nn.Module, norm: bool = True) -> Make:
    """Convolutions and pools, then linear layers that read the whole map."""

    def block(inputs: int, outputs: int) -> list[nn.Module]:
        plain = [nn.Conv2d(inputs, outputs, 3, padding=1), nn.ReLU()]
        return [conv(inputs, outputs) if norm else nn.Sequential(*plain), pool]

    return lambda: nn.Sequential(
        *(*block(3, 8), *block(8, 16), *block(16, 16), nn.Flatten()),
        *(*hidden(256, 32), nn.Dropout(0.5), nn.Linear(32, 10)),
    )


def between(*layers: nn.Module, stem: int = 8, channels: int = 16, stride: int = 1) -> Make:
    """Layers behind a stem and a convolution."""
    return lambda: nn.Sequential(
        *(conv(3, stem, stride=stride), conv(stem, 16, stride=2), *layers, *pooled(channels))
    )


def keywords(end: list[nn.Module]) -> Make:
    """Depthwise keyword spotting on 49 frames of 10 coefficients."""
    stem = nn.Conv2d(1, 16, (10, 4), 2, (5, 1), bias=False)
    return lambda: nn.Sequential(
        *(stem, nn.BatchNorm2d(16), nn.ReLU(), nn.Dropout(0.2)),
        *(depthwise(16, 16), depthwise(16, 16), nn.Dropout(0.4), *end),
    )


def perceptron(*widths: int) -> Make:
    """Linear layers alone."""

    def make() -> nn.Module:
        pairs = pairwise(widths[:-1])
        inner = [layer for inputs, outputs in pairs for layer in hidden(inputs, outputs)]
        return nn.Sequential(nn.Flatten(), *inner, nn.Linear(*widths[-2:]))

    return make


def signal(channels: int, *end: nn.Module) -> Make:
    """Convolutions along a line, of images of height 1."""

    def layer(
        inputs: int, outputs: int, kernel: int, stride: int, groups: int = 1
    ) -> list[nn.Module]:
        padding = kernel // 2
        conv1d = nn.Conv1d(inputs, outputs, kernel, stride, padding, groups=groups, bias=False)
        return [conv1d, nn.BatchNorm1d(outputs), nn.ReLU()]

    return lambda: nn.Sequential(
        *(nn.Flatten(2), *layer(channels, 8, 7, 2), nn.MaxPool1d(2), *layer(8, 8, 5, 2, 8)),
        *(*layer(8, 16, 1, 1), *end),
    )


def _cnv() -> nn.Module:
    widths, layers = (3, 16, 16, 32, 32, 64, 64), []
    for place, (inputs, outputs) in enumerate(pairwise(widths)):
        layers += [nn.Conv2d(inputs, outputs, 3, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
        layers += [nn.MaxPool2d(2)] if place in (1, 3) else []
    return nn.Sequential(*layers, nn.Flatten(), *hidden(64, 64), nn.Linear(64, 10))


_LINE_END = [nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(16, 5)]
EDGE = [
    EdgeNetwork("LeNet-5, max pools", lenet(nn.MaxPool2d, nn.ReLU), DIGITS),
    EdgeNetwork("LeNet-5, average pools", lenet(nn.AvgPool2d, nn.ReLU), DIGITS),
    EdgeNetwork("LeNet-5, tanh", lenet(nn.AvgPool2d, nn.Tanh), DIGITS),
    EdgeNetwork("digits by functions, log-softmax", DigitsExample, DIGITS),
    EdgeNetwork(
        "digits, two convolutions",
        lambda: nn.Sequential(
            conv(1, 8),
            nn.MaxPool2d(2),
            conv(8, 8),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(392, 10),
        ),
        DIGITS,
    ),
    EdgeNetwork("perceptron 784-64-64-10 (FINN's TFC)", perceptron(784, 64, 64, 64, 10), DIGITS),
    EdgeNetwork(
        "perceptron 784-256-256-10 (FINN's LFC, narrow)", perceptron(784, 256, 256, 256, 10), DIGITS
    ),
    EdgeNetwork("perceptron of 16 features (jets)", perceptron(16, 64, 32, 32, 5), (1, 16, 1, 1)),
    EdgeNetwork(
        "perceptron of 40 features",
        perceptron(40, 32, 2),
        (1, 40, 1, 1),
        "expected at least one layer between",
    ),
    EdgeNetwork("FINN's CNV, narrow", _cnv, PHOTOS),
    EdgeNetwork(
        "keyword spotting, depthwise, pool of 25x5",
        keywords([nn.AvgPool2d((25, 5)), nn.Flatten(), nn.Linear(16, 12)]),
        SPECTROGRAM,
    ),
    EdgeNetwork("keyword spotting, depthwise, global pool", keywords(pooled(16, 12)), SPECTROGRAM),
    EdgeNetwork(
        "keyword spotting, two convolutions",
        lambda: nn.Sequential(
            conv(1, 8, (20, 8), (2, 1)),
            nn.MaxPool2d(2),
            conv(8, 8, (10, 4)),
            nn.Flatten(),
            nn.Linear(8 * 13 * 6, 12),
        ),
        SPECTROGRAM,
    ),
    EdgeNetwork(
        "keyword spotting on raw features, Conv1d",
        signal(40, nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(16, 12)),
        (1, 40, 1, 64),
    ),
    EdgeNetwork("ECG, Conv1d", signal(2, *_LINE_END), (1, 2, 1, 256)),
    EdgeNetwork(
        "vibration, Conv1d, pool of 4",
        signal(3, nn.AvgPool1d(4), nn.Flatten(), nn.Linear(64, 4)),
        (1, 3, 1, 128),
    ),
    EdgeNetwork(
        "signal without a height", signal(2, *_LINE_END), (1, 2, 256), "put nn.Flatten(2) in front"
    ),
    EdgeNetwork("VGG, max pools", vgg(nn.MaxPool2d(2)), PHOTOS),
    EdgeNetwork("VGG, average pools", vgg(nn.AvgPool2d(2)), PHOTOS),
    EdgeNetwork("VGG without norms", vgg(nn.MaxPool2d(2), norm=False), PHOTOS),
    EdgeNetwork(
        "VGG, adaptive pool of 4x4 to 2x2",
        between(nn.MaxPool2d(4), nn.AdaptiveAvgPool2d(2), nn.Conv2d(16, 16, 1), nn.ReLU()),
        PHOTOS,
    ),
    EdgeNetwork(
        "VGG, adaptive pool of 1x1 to 7x7",
        lambda: nn.Sequential(
            conv(3, 8, stride=2),
            conv(8, 8),
            nn.MaxPool2d(16),
            nn.AdaptiveAvgPool2d(7),
            nn.Flatten(),
            nn.Linear(392, 16),
            nn.ReLU(),
            nn.Linear(16, 10),
        ),
        PHOTOS,
    ),
    EdgeNetwork(
        "VGG, adaptive pool of 2x2 to 7x7",
        lambda: nn.Sequential(
            conv(3, 8, stride=2),
            conv(8, 8),
            nn.MaxPool2d(8),
            nn.AdaptiveAvgPool2d(7),
            nn.Flatten(),
            nn.Linear(392, 16),
            nn.ReLU(),
            nn.Linear(16, 10),
        ),
        PHOTOS,
        "use images of a size that divides evenly",
    ),
    EdgeNetwork(
        "pool of the whole map, AvgPool2d",
        lambda: nn.Sequential(
            conv(3, 8, stride=2),
            conv(8, 16, stride=2),
            nn.AvgPool2d(8),
            nn.Flatten(),
            nn.Linear(16, 10),
        ),
        PHOTOS,
    ),
    EdgeNetwork("pool of the whole map, x.mean((2, 3))", ended(lambda x: x.mean((2, 3))), PHOTOS),
    EdgeNetwork(
        "pool of the whole map, F.avg_pool2d of x.size()",
        ended(lambda x: F.avg_pool2d(x, x.size()[2:]).view(x.size(0), -1)),
        PHOTOS,
    ),
    EdgeNetwork("pool of the whole map, x.amax((2, 3))", ended(lambda x: x.amax((2, 3))), PHOTOS),
    EdgeNetwork(
        "pool of the whole map, nn.AdaptiveMaxPool2d",
        ended(lambda x: F.adaptive_max_pool2d(x, 1).flatten(1)),
        PHOTOS,
    ),
    EdgeNetwork(
        "pool of rows, then of columns",
        ended(lambda x: x.mean(3).mean(2)),
        PHOTOS,
        "use x.mean((2, 3))",
    ),
    EdgeNetwork(
        "1x1 convolution as classifier",
        lambda: nn.Sequential(
            conv(3, 8),
            conv(8, 16, stride=2),
            nn.Conv2d(16, 10, 1),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        ),
        PHOTOS,
    ),
    EdgeNetwork(
        "softmax at the end",
        lambda: nn.Sequential(conv(3, 8), conv(8, 16, stride=2), *pooled(16), nn.Softmax(1)),
        PHOTOS,
    ),
    EdgeNetwork("activation ReLU6", activated(nn.ReLU6), PHOTOS),
    EdgeNetwork("activation LeakyReLU", activated(lambda: nn.LeakyReLU(0.1)), PHOTOS),
    EdgeNetwork("activation PReLU", activated(nn.PReLU), PHOTOS),
    EdgeNetwork("activation ELU", activated(nn.ELU), PHOTOS),
    EdgeNetwork("activation sigmoid", activated(nn.Sigmoid), PHOTOS),
    EdgeNetwork("activation SiLU", activated(nn.SiLU), PHOTOS),
    EdgeNetwork("activation hard swish", activated(nn.Hardswish), PHOTOS),
    EdgeNetwork("activation GELU", activated(nn.GELU), PHOTOS),
    EdgeNetwork("activation Mish", activated(nn.Mish), PHOTOS),
    EdgeNetwork("ResNet, shortcuts by convolution (B)", resnet("B"), PHOTOS),
    EdgeNetwork("ResNet, shortcuts by slices and zeros (A)", resnet("A"), PHOTOS),
    EdgeNetwork("ResNet, shortcuts by pool and convolution (D)", resnet("D"), PHOTOS),
    EdgeNetwork("ResNet, norms first", resnet(first=True), PHOTOS),
    EdgeNetwork(
        "norm behind ReLU",
        lambda: nn.Sequential(
            nn.Conv2d(3, 8, 3),
            nn.ReLU(),
            nn.BatchNorm2d(8),
            nn.Conv2d(8, 16, 3, 2),
            nn.ReLU(),
            nn.BatchNorm2d(16),
            conv(16, 16),
            *pooled(16),
        ),
        PHOTOS,
    ),
    EdgeNetwork(
        "norm behind a max pool",
        lambda: nn.Sequential(
            nn.Conv2d(3, 8, 3),
            nn.MaxPool2d(2),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Conv2d(8, 16, 3),
            nn.MaxPool2d(2),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            conv(16, 16),
            *pooled(16),
        ),
        PHOTOS,
    ),
    EdgeNetwork(
        "MobileNetV1",
        lambda: nn.Sequential(
            conv(3, 8, stride=2),
            depthwise(8, 16),
            depthwise(16, 32, 2),
            depthwise(32, 32),
            *pooled(32),
        ),
        PHOTOS,
    ),
    EdgeNetwork("MobileNetV2", inverted(), PHOTOS),
    EdgeNetwork(
        "MobileNetV3: hard swish, gates by hard sigmoid",
        inverted(nn.Hardswish, nn.Hardsigmoid()),
        PHOTOS,
    ),
    EdgeNetwork("EfficientNet: SiLU, gates by sigmoid", inverted(nn.SiLU, nn.Sigmoid()), PHOTOS),
    EdgeNetwork("EfficientNet-lite", inverted(nn.ReLU6), (1, 3, 48, 32)),
    EdgeNetwork(
        "grouped convolutions (ResNeXt)", between(conv(16, 16, groups=4), conv(16, 16, 1)), PHOTOS
    ),
    EdgeNetwork(
        "depthwise, twice the channels",
        between(nn.Conv2d(16, 32, 3, 1, 1, groups=16), nn.ReLU(), channels=32),
        PHOTOS,
    ),
    EdgeNetwork(
        "dilated and rectangular kernels",
        between(
            nn.Conv2d(16, 16, 3, 1, 2, dilation=2),
            nn.ReLU(),
            conv(16, 16, (1, 5)),
            conv(16, 16, (5, 1), (2, 1)),
        ),
        PHOTOS,
    ),
    EdgeNetwork(
        "max pool of 3 over the edge (ceil_mode)",
        between(nn.MaxPool2d(3, 2, ceil_mode=True), conv(16, 16)),
        PHOTOS,
    ),
    EdgeNetwork(
        "zeros around the image (ZeroPad2d)",
        between(nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(16, 16, 3, 2), nn.ReLU()),
        PHOTOS,
    ),
    EdgeNetwork(
        "DenseNet",
        between(
            Dense(16, 8),
            Dense(24, 8),
            nn.Conv2d(32, 16, 1),
            nn.AvgPool2d(2),
            Dense(16, 8),
            channels=24,
        ),
        PHOTOS,
    ),
    EdgeNetwork(
        "SqueezeNet",
        between(Fire(16, 4, 8), nn.MaxPool2d(3, 2, ceil_mode=True), Fire(16, 4, 8)),
        PHOTOS,
    ),
    EdgeNetwork("ShuffleNetV2", between(Shuffled(16), Shuffled(16), conv(16, 16, 1)), PHOTOS),
    EdgeNetwork("GhostNet", between(Ghost(16, 15), conv(15, 16)), PHOTOS),
    EdgeNetwork("Inception", between(Inception(16), conv(20, 16)), PHOTOS),
    EdgeNetwork(
        "cross-stage partial (YOLO body)",
        between(Partial(16), nn.MaxPool2d(2), Partial(16)),
        PHOTOS,
    ),
    EdgeNetwork("two scales put together (YOLO neck)", lambda: Scales("cat"), PHOTOS),
    EdgeNetwork("two scales added (feature pyramid)", lambda: Scales("add"), PHOTOS),
    EdgeNetwork("squeeze and excitation", between(Excitation(16, nn.Sigmoid(), nn.ReLU())), PHOTOS),
    EdgeNetwork("layer scale", between(Scaled(16)), PHOTOS),
    EdgeNetwork("products of two maps (StarNet)", between(TwoStreams(16)), PHOTOS),
    EdgeNetwork(
        "photograph, not square", between(nn.MaxPool2d(2), conv(16, 16), stride=2), (1, 3, 96, 64)
    ),
    EdgeNetwork(
        "gate for each position", between(Attention(16)), PHOTOS, "a number for each channel"
    ),
    EdgeNetwork(
        "layer norm", between(nn.GroupNorm(1, 16), conv(16, 16)), PHOTOS, "use nn.BatchNorm2d"
    ),
    EdgeNetwork(
        "bilinear upsampling",
        between(nn.Upsample(scale_factor=2, mode="bilinear"), conv(16, 16)),
        PHOTOS,
        "use mode='nearest'",
    ),
    EdgeNetwork(
        "transposed convolution",
        between(nn.ConvTranspose2d(16, 16, 2, 2), nn.ReLU()),
        PHOTOS,
        "QuantConvTranspose2d has no dataflow layer",
    ),
    EdgeNetwork(
        "reflecting padding",
        between(nn.Conv2d(16, 16, 3, padding=1, padding_mode="reflect"), nn.ReLU()),
        PHOTOS,
        "use zeros",
    ),
]
"""The list; refused networks with words of the advice that they get."""
