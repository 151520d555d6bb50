"""A network of integers: what the dataflow hardware computes, and nothing else.

Streams of integers, and the few things that happen to them. It can be executed in torch, exactly,
which is the oracle of every later form.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from brevitas_multiquant.core.grids import weight_datatype
from brevitas_multiquant.core.power_of_two import integer_range
from brevitas_multiquant.quant.geometry import per_channel


@dataclass(frozen=True, eq=False)
class Stream:
    """Integers (C, H, W) an image that flow between two layers.

    Args:
        name: unique in its graph.
        shape: (C, H, W).
        lowest: smallest integer that can occur.
        highest: largest integer that can occur.
    """

    name: str
    shape: tuple[int, int, int]
    lowest: int
    highest: int


@dataclass(frozen=True, eq=False)
class Layer:
    """One operation.

    Args:
        where: module path of what it was made from.
        inputs: streams it reads.
        output: stream it gives.
    """

    where: str
    inputs: tuple[Stream, ...]
    output: Stream

    def run(self, *values: Tensor) -> Tensor:
        """Integers (N, C, H, W) as fp64."""
        raise NotImplementedError


@dataclass(frozen=True, eq=False)
class Convolution(Layer):
    """Integer weights (O, I / groups, kH, kW); linear layers are 1x1 convolutions.

    ``weight_bits`` is what the network's weights need as signed integers, ``narrow`` whether the
    most negative of these is left out; ``padding`` inserts zeros. A dense convolution that stands
    for one of ``grouped`` groups has zeros between them.
    """

    weight: Tensor
    weight_bits: int
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    narrow: bool = False
    grouped: int = 1

    @property
    def weight_range(self) -> tuple[int, int]:
        """Smallest and largest integer that the network's weights can be."""
        lowest, highest = integer_range(self.weight_bits, signed=True)
        return lowest + self.narrow, highest

    @property
    def held_range(self) -> tuple[int, int]:
        """The same in hardware: negated weights may leave the range of the network's."""
        lowest, highest = self.weight_range
        return min(lowest, int(self.weight.min())), max(highest, int(self.weight.max()))

    @property
    def weight_datatype(self) -> str:
        """The type of qonnx that hardware needs for them."""
        return weight_datatype(*self.held_range)

    @property
    def widened(self) -> list[int]:
        """Output channels whose weights, negated, leave the range of the network's."""
        lowest, highest = self.weight_range
        outside = (self.weight < lowest) | (self.weight > highest)
        return outside.flatten(1).any(1).nonzero().flatten().tolist()

    def run(self, *values: Tensor) -> Tensor:
        """Sums of products."""
        weight = self.weight.double()
        return F.conv2d(
            values[0], weight, None, self.stride, self.padding, self.dilation, self.groups
        )


@dataclass(frozen=True, eq=False)
class Thresholds(Layer):
    """Codes: ``first_code`` plus the number of a channel's entries (C, levels) that are reached."""

    table: Tensor
    first_code: int
    bits: int

    def run(self, *values: Tensor) -> Tensor:
        """Codes."""
        by_channel = values[0].transpose(0, 1)
        flat = by_channel.reshape(len(self.table), -1).contiguous()
        codes = torch.searchsorted(self.table.double(), flat, right=True) + self.first_code
        return codes.double().view(by_channel.shape).transpose(0, 1).contiguous()


@dataclass(frozen=True, eq=False)
class ChannelSlice(Layer):
    """The first channels of a stream: what a half branch reads."""

    def run(self, *values: Tensor) -> Tensor:
        """As many channels as the output has."""
        return values[0][:, : self.output.shape[0]]


@dataclass(frozen=True, eq=False)
class ChannelPick(Layer):
    """Some channels of a stream in some order, at every so many positions.

    Args:
        picks: for each channel of the output one of the input; -1 for zeros.
        first: row and column of the first position.
        stride: rows and columns from one to the next.
    """

    picks: tuple[int, ...]
    first: tuple[int, int] = (0, 0)
    stride: tuple[int, int] = (1, 1)

    @property
    def weight(self) -> Tensor:
        """Zeros and ones (O, I, kH, kW) of the convolution that does the same."""
        (source,) = self.inputs
        row, column = self.first
        weight = torch.zeros(len(self.picks), source.shape[0], row + 1, column + 1)
        for place, pick in enumerate(self.picks):
            if pick >= 0:
                weight[place, pick, row, column] = 1
        return weight

    def run(self, *values: Tensor) -> Tensor:
        """Integers as they are, and zeros."""
        (row, column), (down, right) = self.first, self.stride
        kept = values[0][:, :, row::down, column::right]
        zeros = torch.zeros_like(kept[:, :1])
        return torch.cat(
            [kept[:, pick : pick + 1] if pick >= 0 else zeros for pick in self.picks], 1
        )


@dataclass(frozen=True, eq=False)
class Concatenation(Layer):
    """Channels of several streams, one stream behind the other."""

    def run(self, *values: Tensor) -> Tensor:
        """All channels."""
        return torch.cat(values, 1)


@dataclass(frozen=True, eq=False)
class Padding(Layer):
    """Zeros around an image: rows and columns before and behind it."""

    before: tuple[int, int]
    after: tuple[int, int]

    def run(self, *values: Tensor) -> Tensor:
        """A larger image."""
        (top, left), (bottom, right) = self.before, self.after
        return F.pad(values[0], (left, right, top, bottom))


@dataclass(frozen=True, eq=False)
class Upsampling(Layer):
    """Every position as many times, down and across."""

    factors: tuple[int, int]

    def run(self, *values: Tensor) -> Tensor:
        """Nearest neighbours."""
        down, right = self.factors
        return values[0].repeat_interleave(down, 2).repeat_interleave(right, 3)


@dataclass(frozen=True, eq=False)
class Subtraction(Layer):
    """Difference of two streams."""

    def run(self, *values: Tensor) -> Tensor:
        """Integer differences."""
        return values[0] - values[1]


@dataclass(frozen=True, eq=False)
class Product(Layer):
    """Product of two streams; the second may have one position, which stands for all."""

    def run(self, *values: Tensor) -> Tensor:
        """Integer products."""
        return values[0] * values[1]


@dataclass(frozen=True, eq=False)
class Addition(Layer):
    """Sum of two streams."""

    def run(self, *values: Tensor) -> Tensor:
        """Integer sums."""
        return values[0] + values[1]


@dataclass(frozen=True, eq=False)
class MaxPool(Layer):
    """Largest integer of each window."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]

    def run(self, *values: Tensor) -> Tensor:
        """Largest integers."""
        return F.max_pool2d(values[0], self.kernel, self.stride, self.padding)


@dataclass(frozen=True, eq=False)
class PositionSum(Layer):
    """Sum over all positions of an image, (C, H, W) to (C, 1, 1)."""

    def run(self, *values: Tensor) -> Tensor:
        """Integer sums."""
        return values[0].sum((2, 3), keepdim=True)


FINISHES: dict[str, Callable[[Tensor], Tensor]] = {
    "softmax": partial(F.softmax, dim=1),
    "log_softmax": partial(F.log_softmax, dim=1),
    "sigmoid": torch.sigmoid,
}
"""What a network may do with its logits (N, classes, ...), which is left to the processor."""


@dataclass(frozen=True)
class HostSide:
    """What is left to the processor: images to integers, integers to logits.

    Args:
        input_scale: ``code = clip(floor(x / input_scale + 1/2), *input_range)``.
        input_range: smallest and largest code of the image.
        output_scale: ``logit = integer * output_scale / output_divisor + output_bias``.
        output_bias: (classes,).
        finish: what the network does with its logits: keys of `FINISHES`, in order.
        output_divisor: positions, and branches, that are averaged behind the last layer.
    """

    input_scale: float
    input_range: tuple[int, int]
    output_scale: float
    output_bias: Tensor
    finish: tuple[str, ...] = ()
    output_divisor: float = 1

    def codes(self, images: Tensor) -> Tensor:
        """Integers of images (N, C, H, W), fp32."""
        shifted = images + self.input_scale / 2
        return (shifted / self.input_scale).clamp(*self.input_range).floor()

    def logits(self, integers: Tensor) -> Tensor:
        """Logits (N, classes) of the hardware's output (N, classes, 1, 1); maps stay maps."""
        is_map = integers.dim() == 4 and integers[0, 0].numel() > 1
        is_map &= self.output_bias.numel() == integers.shape[1]
        flat = integers if is_map else integers.flatten(1)
        bias = per_channel(self.output_bias, flat)
        logits = flat.float() * self.output_scale / self.output_divisor + bias
        for name in self.finish:
            logits = FINISHES[name](logits)
        return logits


@dataclass
class IntegerGraph:
    """Layers in execution order, what they start from, and what the host does around them."""

    bits: int
    input: Stream
    output: Stream
    host: HostSide
    layers: list[Layer] = field(default_factory=list)

    def run(self, codes: Tensor) -> Tensor:
        """The output stream for integers (N, C, H, W) of the input stream."""
        values = {self.input.name: codes.double()}
        for layer in self.layers:
            inputs = (values[stream.name] for stream in layer.inputs)
            values[layer.output.name] = layer.run(*inputs)
        return values[self.output.name]

    def logits(self, images: Tensor) -> Tensor:
        """Logits (N, classes) of float images (N, C, H, W), host included."""
        return self.host.logits(self.run(self.host.codes(images)))
