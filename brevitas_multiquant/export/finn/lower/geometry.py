"""Windows on images: sizes, and the taps of a kernel that only ever see padding."""

from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

Pair = tuple[int, int]
Shape = tuple[int, int, int]
"""(C, H, W)."""


def pair(value: Any) -> Pair:
    """Torch's short form of two equal numbers.

    Example:
        >>> pair(3), pair([1, 2])
        ((3, 3), (1, 2))
    """
    if isinstance(value, int):
        return value, value
    height, width = value
    return height, width


@dataclass(frozen=True)
class Window:
    """How a kernel moves over an image.

    Args:
        kernel, stride, padding, dilation: (vertical, horizontal); padding on both sides.
    """

    kernel: Pair
    stride: Pair = (1, 1)
    padding: Pair = (0, 0)
    dilation: Pair = (1, 1)

    @classmethod
    def of(cls, layer: Any) -> "Window":
        """The window of a convolution or a pool; "same" where it is as wide on both sides."""
        line = isinstance(layer, nn.Conv1d)  # of images of height 1

        def sizes(value: Any, other: int) -> Pair:
            return (other, value[0]) if line else pair(value)

        window = cls(
            sizes(layer.kernel_size, 1),
            sizes(layer.stride, 1),
            dilation=sizes(getattr(layer, "dilation", 1), 1),
        )
        if layer.padding == "same":
            return replace(window, padding=window.same_padding)
        if layer.padding == "valid":
            return window
        return replace(window, padding=sizes(layer.padding, 0))

    @property
    def same_padding(self) -> Pair:
        """What keeps the size of an image at stride 1, rounded down on both sides."""
        reach = (d * (k - 1) // 2 for k, d in zip(self.kernel, self.dilation, strict=True))
        height, width = reach
        return height, width

    @property
    def has_middle(self) -> bool:
        """Whether "same" is as much padding on either side."""
        axes = zip(self.kernel, self.dilation, strict=True)
        return all(d * (k - 1) % 2 == 0 for k, d in axes)

    @property
    def samples(self) -> bool:
        """Whether it sees one position at a time, every so many."""
        return self.kernel == (1, 1) and self.padding == (0, 0)

    def covers(self, shape: Shape) -> bool:
        """Whether there is one position, which sees all of an image (C, H, W) and no padding."""
        whole = (shape[1], shape[2])
        return self.kernel == whole and self.padding == (0, 0) and self.dilation == (1, 1)

    def rounds_alike(self, shape: Shape) -> bool:
        """Whether torch's ``ceil_mode`` makes no difference on an image (C, H, W)."""
        axes = zip(shape[1:], self.kernel, self.stride, self.padding, self.dilation, strict=True)
        return all((n + 2 * p - d * (k - 1) - 1) % s == 0 for n, k, s, p, d in axes)

    def ceil_padding(self, shape: Shape) -> Pair:
        """Padding behind an image for as many positions as torch's ``ceil_mode`` has.

        Every window starts on the image or on the padding before it.

        Example:
            >>> Window((3, 3), stride=(2, 2)).ceil_padding((8, 32, 31))
            (1, 0)
        """
        axes = zip(shape[1:], self.kernel, self.stride, self.padding, strict=True)
        found = []
        for n, k, s, p in axes:
            positions = -(-(n + 2 * p - k) // s) + 1
            if (positions - 1) * s >= n + p:
                positions -= 1
            found.append(max((positions - 1) * s + k - n - p, 0))
        return found[0], found[1]

    def positions(self, shape: Shape) -> Pair:
        """Positions, vertical and horizontal, on an image (C, H, W).

        Example:
            >>> Window((3, 3), stride=(2, 2), padding=(1, 1)).positions((8, 32, 31))
            (16, 16)
        """
        axes = zip(shape[1:], self.kernel, self.stride, self.padding, self.dilation, strict=True)
        height, width = ((n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in axes)
        return height, width


def without_taps_on_padding(weight: Tensor, shape: Shape, window: Window) -> tuple[Tensor, Window]:
    """The kernel of one tap where an image is one position high or wide: the others see zeros only.

    Exact, cheaper, and what lowering to matrix products asks for.

    Args:
        weight: (O, I / groups, kH, kW).
        shape: of the image.
        window: how the kernel moves.
    """
    kernel, stride, padding = list(window.kernel), list(window.stride), list(window.padding)
    for axis in (0, 1):
        tap, beside = divmod(padding[axis], window.dilation[axis])
        size = kernel[axis]
        if shape[1 + axis] == 1 and size > 1 and size == 2 * tap + 1 and not beside:
            weight = weight.narrow(2 + axis, tap, 1)
            kernel[axis], stride[axis], padding[axis] = 1, 1, 0
    moved = replace(window, kernel=pair(kernel), stride=pair(stride), padding=pair(padding))
    return weight, moved


def is_global(sizes: Any) -> bool:
    """Whether an adaptive pool's output sizes ask for one position."""
    return pair(sizes) == (1, 1)


def unsupported_convolution(conv: nn.Conv1d | nn.Conv2d) -> str | None:
    """What keeps a convolution from hardware, and what to do; None if nothing does."""
    if conv.padding_mode != "zeros" and any(conv.padding):
        return f"padding_mode={conv.padding_mode!r}: use zeros"
    return None


def has_no_layer(conv: nn.Conv1d | nn.Conv2d) -> bool:
    """Whether a convolution is neither dense nor depthwise, which is all that FINN has."""
    depthwise = conv.groups == conv.in_channels == conv.out_channels
    return conv.groups > 1 and not depthwise


def dense_weight(weight: Tensor, groups: int) -> Tensor:
    """The weights (O, I, kH, kW) of a dense convolution that does what a grouped one does.

    Zeros between the groups: exact, for ``groups`` times the multiplications.

    Args:
        weight: (O, I / groups, kH, kW).
        groups: how many.
    """
    blocks = weight.view(groups, -1, *weight.shape[1:])
    dense = weight.new_zeros(groups, blocks.shape[1], groups, *weight.shape[1:])
    for group, block in enumerate(blocks):
        dense[group, :, group] = block
    return dense.flatten(0, 1).flatten(1, 2)


def same_padding(window: Window, shape: Shape) -> tuple[Pair, Pair]:
    """Rows and columns before and behind an image, as torch pads, and TensorFlow for a stride.

    Example:
        >>> same_padding(Window((3, 3), stride=(2, 2)), (8, 32, 31))
        ((0, 1), (1, 1))
    """
    axes = zip(shape[1:], window.kernel, window.stride, window.dilation, strict=True)
    total = [max((-(-n // s) - 1) * s + (k - 1) * d + 1 - n, 0) for n, k, s, d in axes]
    before = (total[0] // 2, total[1] // 2)
    return before, (total[0] - before[0], total[1] - before[1])
