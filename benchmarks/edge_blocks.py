"""Blocks of everyday edge networks, narrow, as people write them."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


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


class UNet(nn.Module):
    """Twice half the size and back, beside what was there before: a class for each pixel."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.fine, self.middle, self.coarse = conv(3, 8), conv(8, 16), conv(16, 16)
        self.pool, self.up = nn.MaxPool2d(2), nn.Upsample(scale_factor=2, mode="nearest")
        self.join_middle, self.join_fine = conv(32, 8), conv(16, 8)
        self.classes = nn.Conv2d(8, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, classes, H, W) of ``x`` (N, 3, H, W)."""
        fine = self.fine(x)
        middle = self.middle(self.pool(fine))
        up = self.up(self.coarse(self.pool(middle)))
        up = self.up(self.join_middle(torch.cat([middle, up], 1)))
        return self.classes(self.join_fine(torch.cat([fine, up], 1)))


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
