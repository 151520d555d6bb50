"""What moves positions about, and what it makes of integers.

A move changes places with every function of single numbers that only rises, so that it waits for
the next table of thresholds and is made of codes, which are narrower than sums. All but max pools
change places with any function.
"""

from dataclasses import dataclass

from brevitas_multiquant.export.finn.integer_graph import (
    ChannelPick,
    Layer,
    MaxPool,
    Padding,
    Stream,
    Upsampling,
)
from brevitas_multiquant.export.finn.lower.geometry import Pair, Shape, Window


@dataclass(frozen=True)
class Move:
    """Base of all moves.

    ``keeps_order``: whether only functions that rise may stand behind it while it waits.
    """

    keeps_order = False

    @property
    def needs_no_negative(self) -> bool:
        """Whether it puts zeros where a max pool expects what is never picked."""
        return False

    def shape(self, shape: Shape) -> Shape:
        """Of what it gives, from that of what it reads."""
        raise NotImplementedError

    def layer(self, where: str, source: Stream, output: Stream) -> Layer:
        """The operation on integers."""
        raise NotImplementedError


@dataclass(frozen=True)
class Pooling(Move):
    """The largest of each window."""

    window: Window
    keeps_order = True

    @property
    def needs_no_negative(self) -> bool:
        """Its padding is zeros."""
        return any(self.window.padding)

    def shape(self, shape: Shape) -> Shape:
        """One position for each window."""
        return (shape[0], *self.window.positions(shape))

    def layer(self, where: str, source: Stream, output: Stream) -> Layer:
        """A max pool."""
        window = self.window
        moves = (window.kernel, window.stride, window.padding)
        return MaxPool(where, (source,), output, *moves)


@dataclass(frozen=True)
class Enlarging(Move):
    """Every position as many times, down and across."""

    factors: Pair

    def shape(self, shape: Shape) -> Shape:
        """As many times the size."""
        return shape[0], shape[1] * self.factors[0], shape[2] * self.factors[1]

    def layer(self, where: str, source: Stream, output: Stream) -> Layer:
        """Nearest neighbours."""
        return Upsampling(where, (source,), output, self.factors)


@dataclass(frozen=True)
class Sampling(Move):
    """Every so many rows and columns, from one on."""

    first: Pair
    stride: Pair

    def shape(self, shape: Shape) -> Shape:
        """One position for each that is kept."""
        axes = zip(shape[1:], self.first, self.stride, strict=True)
        height, width = ((n - f - 1) // s + 1 for n, f, s in axes)
        return shape[0], height, width

    def layer(self, where: str, source: Stream, output: Stream) -> Layer:
        """All channels of these positions."""
        picks = tuple(range(source.shape[0]))
        return ChannelPick(where, (source,), output, picks, self.first, self.stride)


@dataclass(frozen=True)
class ZeroPadding(Move):
    """Zeros around an image; what they become is checked when the table is made."""

    before: Pair
    after: Pair

    def shape(self, shape: Shape) -> Shape:
        """Larger by the padding."""
        height, width = (
            n + b + a for n, b, a in zip(shape[1:], self.before, self.after, strict=True)
        )
        return shape[0], height, width

    def layer(self, where: str, source: Stream, output: Stream) -> Layer:
        """Zeros around the codes."""
        return Padding(where, (source,), output, self.before, self.after)


@dataclass(frozen=True)
class LowestPadding(ZeroPadding):
    """What no max pool picks, which zeros are among codes from 0 on."""

    @property
    def needs_no_negative(self) -> bool:
        """Always."""
        return True
