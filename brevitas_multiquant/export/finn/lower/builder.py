"""The integer network while it grows, and the problems met on the way."""

from dataclasses import dataclass, field, replace
from itertools import count

from torch import Tensor

from brevitas_multiquant.export.finn.integer_graph import Convolution, Layer, Stream
from brevitas_multiquant.export.finn.lower.geometry import Shape
from brevitas_multiquant.export.finn.lower.values import Value, is_power_of_two

NO_QUANTIZER = "reads float values: no quantizer before"
NOT_FINN = "adds float values: build with profile='finn'"


@dataclass(frozen=True)
class HostQuantizer:
    """The quantizer of the image, which is the host's work."""

    stream: Stream
    scale: float
    code_range: tuple[int, int]


@dataclass
class Builder:
    """Layers in execution order; ``problems`` holds (module path, what is wrong and what to do).

    Args:
        layers: so far.
        problems: so far.
        image: the quantizer of the image, once it was met.
        taken: streams that somebody reads as they are.
        turned: stream that no layer gives any more -> the one with some channels negated that a
            layer gives in its place, and the sign of each channel.
    """

    layers: list[Layer] = field(default_factory=list)
    problems: list[tuple[str, str]] = field(default_factory=list)
    image: HostQuantizer | None = None
    taken: set[Stream] = field(default_factory=set)
    turned: dict[Stream, tuple[Stream, Tensor]] = field(default_factory=dict)
    _numbers: "count[int]" = field(default_factory=count)

    def stream(self, shape: Shape, lowest: int, highest: int) -> Stream:
        """A new stream."""
        return Stream(f"stream_{next(self._numbers)}", shape, lowest, highest)

    def add(self, layer: Layer) -> Stream:
        """Append a layer, and note that its inputs are read; what it gives."""
        self.taken.update(layer.inputs)
        self.layers.append(layer)
        return layer.output

    def problem(self, where: str, advice: str, value: Value) -> Value:
        """Note a problem and go on, hiding what follows from it."""
        self.problems.append((where, advice))
        return value.hidden()

    def present(self, value: Value) -> Value:
        """A value in terms of the streams that layers give now."""
        while value.stream in self.turned:
            value = value.turned_over(*self.turned[value.stream])
        return value

    def on_a_grid(self, where: str, value: Value) -> Value:
        """A value that sums may be taken of: integers times at most one power of two."""
        value = self.present(value)
        if value.stream is None:
            return self.problem(where, NO_QUANTIZER, value) if value.known else value
        factors = value.factors()
        if value.pools or not all(is_power_of_two(factor) for factor in factors):
            return self.problem(where, NO_QUANTIZER, value)
        return replace(value, functions=factors, vector=value.flat)

    def can_turn_over(self, stream: Stream) -> bool:
        """Whether the channels of a stream may be negated: a convolution gives it to nobody yet."""
        return stream not in self.taken and isinstance(self._giver(stream), Convolution)

    def turn_over(self, stream: Stream, signs: Tensor) -> Stream:
        """The stream with some channels negated: the convolution that gives it gets new weights.

        Args:
            stream: for which `can_turn_over` holds.
            signs: 1 or -1 for each channel.
        """
        layer = self._giver(stream)
        assert isinstance(layer, Convolution)
        weight = layer.weight * signs.view(-1, 1, 1, 1) + 0.0  # no negative zeros
        turned = self.stream(stream.shape, *sum_range(weight, layer.inputs[0]))
        place = self.layers.index(layer)
        self.layers[place] = replace(layer, weight=weight, output=turned)
        self.turned[stream] = turned, signs
        return turned

    def _giver(self, stream: Stream) -> Layer | None:
        return next((layer for layer in self.layers if layer.output is stream), None)


def sum_range(weight: Tensor, source: Stream) -> tuple[int, int]:
    """Smallest and largest sum of products that any channel can give."""
    flat = weight.flatten(1).double()
    positive, negative = flat.clamp(min=0).sum(1), flat.clamp(max=0).sum(1)
    low = source.lowest * positive + source.highest * negative
    high = source.highest * positive + source.lowest * negative
    return int(low.min()), int(high.max())
