"""Layers of dataflow hardware, described by what their cost depends on.

One class for each kind of layer in FINN's graphs. `brevitas_multiquant.cost.luts.rules` says what
each costs, `brevitas_multiquant.cost.luts.folding` how parallel each is.
"""

from dataclasses import dataclass, fields
from numbers import Integral
from typing import Literal

from brevitas_multiquant.errors import HardwareError

RamStyle = Literal["auto", "distributed", "block", "ultra"]
MemMode = Literal["internal_decoupled", "internal_embedded", "external"]
RAM_STYLES = ("auto", "distributed", "block", "ultra")
MEM_MODES = ("internal_decoupled", "internal_embedded", "external")
Pair = tuple[int, int]
_MAY_BE_ZERO = ("bram_from", "uram_from")


@dataclass(frozen=True)
class Node:
    """Base of all layers: sizes are positive, parallelism divides what it runs over."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.type is int:
                self._count(field.name, value)
            elif field.type == Pair:
                if not isinstance(value, tuple) or len(value) != 2:
                    self._refuse(field.name, "a pair (height, width)", value)
                for one in value:
                    self._count(field.name, one)
        for name, allowed in (("ram_style", RAM_STYLES), ("mem_mode", MEM_MODES)):
            if getattr(self, name, allowed[0]) not in allowed:
                self._refuse(name, f"one of {', '.join(allowed)}", getattr(self, name))

    def _count(self, name: str, value: object) -> None:
        smallest = 0 if name in _MAY_BE_ZERO else 1
        if isinstance(value, bool) or not isinstance(value, Integral) or value < smallest:
            self._refuse(name, f"a whole number, at least {smallest}", value)

    def _divides(self, name: str, total: int) -> None:
        if total % getattr(self, name):
            self._refuse(name, f"a divisor of {total}", getattr(self, name))

    def _refuse(self, name: str, expected: str, got: object) -> None:
        raise HardwareError(f"{type(self).__name__}.{name}: expected {expected}, got {got!r}")


@dataclass(frozen=True)
class MatrixProduct(Node):
    """Dense product: a convolution behind its window, or a linear layer. FINN's MVAU.

    Args:
        inputs: numbers that one output is the sum of: kernel positions times input channels.
        outputs: output channels.
        positions: output positions of an image; 1 for a linear layer.
        weight_bits: of the integer weights.
        activation_bits: of the integers that come in.
        accumulator_bits: of the sums.
        signed_activations: whether activations can be negative.
        signed_weights: whether weights can be.
        narrow: whether no weight is the most negative integer of its type.
        pe: outputs computed at once.
        simd: inputs of one output read at once.
        ram_style: memory of the weights.
        mem_mode: where that memory is, in FINN's words.
    """

    inputs: int
    outputs: int
    positions: int
    weight_bits: int
    activation_bits: int
    accumulator_bits: int
    signed_activations: bool = False
    signed_weights: bool = True
    narrow: bool = True
    pe: int = 1
    simd: int = 1
    ram_style: RamStyle = "auto"
    mem_mode: MemMode = "internal_decoupled"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._divides("pe", self.outputs)
        self._divides("simd", self.inputs)

    @property
    def fan_in(self) -> int:
        """Products in one sum."""
        return self.inputs

    @property
    def weight_words(self) -> int:
        """Depth of the weight memory; a word is what one cycle reads."""
        return self.inputs * self.outputs // (self.pe * self.simd)


@dataclass(frozen=True)
class DepthwiseProduct(Node):
    """Each channel with a kernel of its own. FINN's VVAU.

    Args:
        channels: of input and output.
        kernel: height and width.
        positions: output positions of an image.
        weight_bits: of the integer weights.
        activation_bits: of the integers that come in.
        accumulator_bits: of the sums.
        signed_activations: whether activations can be negative.
        signed_weights: whether weights can be.
        pe: channels computed at once.
        simd: kernel positions of a channel read at once.
        ram_style: memory of the weights.
        mem_mode: where that memory is, in FINN's words.
    """

    channels: int
    kernel: Pair
    positions: int
    weight_bits: int
    activation_bits: int
    accumulator_bits: int
    signed_activations: bool = False
    signed_weights: bool = True
    pe: int = 1
    simd: int = 1
    ram_style: RamStyle = "auto"
    mem_mode: MemMode = "internal_decoupled"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._divides("pe", self.channels)
        self._divides("simd", self.fan_in)

    @property
    def fan_in(self) -> int:
        """Products in one sum."""
        return self.kernel[0] * self.kernel[1]

    @property
    def weight_words(self) -> int:
        """Depth of the weight memory; a word is what one cycle reads."""
        return self.channels * self.fan_in // (self.pe * self.simd)


@dataclass(frozen=True)
class Thresholds(Node):
    """Sums to codes by a table of a channel's own. FINN's Thresholding, in RTL.

    Args:
        channels: with a table each.
        positions: of an image.
        threshold_bits: of the integers in the tables.
        output_bits: of the codes; the tables are exponential in it.
        pe: channels computed at once.
        bram_from: tables as deep as that go to block RAM; FINN's ``depth_trigger_bram``.
        uram_from: tables as deep as that go to UltraRAM. With ``bram_from`` alone it is 0, and as
            in FINN all tables go to UltraRAM: set both.
    """

    channels: int
    positions: int
    threshold_bits: int
    output_bits: int
    pe: int = 1
    bram_from: int = 0
    uram_from: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        self._divides("pe", self.channels)


@dataclass(frozen=True)
class Window(Node):
    """Lines of the image kept, windows given out. FINN's ConvolutionInputGenerator, in RTL.

    Args:
        channels: of the image.
        size: height and width of the image, padding included.
        kernel: height and width.
        activation_bits: of the integers.
        stride: vertical and horizontal.
        dilation: vertical and horizontal.
        depthwise: channel by channel, for depthwise products and pools.
        simd: channels at once.
        parallel: a whole window in each cycle.
        ram_style: memory of the lines.
    """

    channels: int
    size: Pair
    kernel: Pair
    activation_bits: int
    stride: Pair = (1, 1)
    dilation: Pair = (1, 1)
    depthwise: bool = False
    simd: int = 1
    parallel: bool = False
    ram_style: RamStyle = "distributed"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._divides("simd", self.channels)
        if any(e > s for e, s in zip(self.extent, self.size, strict=True)):
            self._refuse("size", f"at least {self.extent}, the extent of the kernel", self.size)

    @property
    def extent(self) -> Pair:
        """Height and width that a kernel spans."""
        (height, width), (down, right) = self.kernel, self.dilation
        return (height - 1) * down + 1, (width - 1) * right + 1

    @property
    def output_size(self) -> Pair:
        """Height and width of the convolution's output."""
        height, width = (
            (size - extent) // stride + 1
            for size, extent, stride in zip(self.size, self.extent, self.stride, strict=True)
        )
        return height, width

    @property
    def whole_windows(self) -> bool:
        """Whether a window comes in one cycle, from registers and line buffers."""
        return self.parallel or self.kernel == (1, 1)


@dataclass(frozen=True)
class Streamed(Node):
    """A layer that handles each number of its input once and keeps none.

    Args:
        channels: of the image.
        positions: of the image, those that padding adds included.
        pe: channels at once.
    """

    channels: int
    positions: int
    pe: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        self._divides("pe", self.channels)


@dataclass(frozen=True)
class Addition(Streamed):
    """Sum, difference or product of two streams. FINN's ElementwiseAdd, -Sub and -Mul."""


@dataclass(frozen=True)
class Duplication(Streamed):
    """One stream for several readers. FINN's DuplicateStreams."""


@dataclass(frozen=True)
class Padding(Streamed):
    """Zeros around an image. FINN's FMPadding."""


@dataclass(frozen=True)
class Upsampling(Streamed):
    """Positions several times. FINN's UpsampleNearestNeighbour.

    Args:
        channels: of the image.
        positions: that go out.
        pe: channels at once.
    """


@dataclass(frozen=True)
class Concatenation(Streamed):
    """Channels of several streams. FINN's StreamingConcat.

    Args:
        channels: of all streams together.
        positions: of the image.
        pe: channels at once.
        common: the largest number that divides the channels of each stream, and so does ``pe``.
    """

    common: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        self._divides("pe", self.common)


@dataclass(frozen=True)
class PositionSum(Streamed):
    """Sum over all positions. FINN's GlobalAccPool."""


@dataclass(frozen=True)
class Pool(Node):
    """Largest number, or sum, of each window. FINN's Pool, behind a depthwise `Window`.

    Args:
        channels: of input and output.
        kernel: height and width.
        positions: output positions of an image.
        pe: channels at once.
    """

    channels: int
    kernel: Pair
    positions: int
    pe: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        self._divides("pe", self.channels)


@dataclass(frozen=True)
class WidthConverter(Node):
    """Between layers of different parallelism. FINN's StreamingDataWidthConverter.

    FINN inserts it behind its estimates, so that its report counts none.

    Args:
        input_bits: of one word that comes in.
        output_bits: of one word that goes out.
    """

    input_bits: int
    output_bits: int
