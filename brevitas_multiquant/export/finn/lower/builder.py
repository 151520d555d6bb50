"""The integer network while it grows, and the problems met on the way."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import count

import torch
from torch import Tensor

from brevitas_multiquant.export.finn.integer_graph import (
    ChannelPick,
    Concatenation,
    Convolution,
    Layer,
    Stream,
)
from brevitas_multiquant.export.finn.lower.geometry import Shape
from brevitas_multiquant.export.finn.lower.moves import Move, Pooling, ZeroPadding
from brevitas_multiquant.export.finn.lower.values import Value, is_power_of_two
from brevitas_multiquant.export.finn.thresholds import directions
from brevitas_multiquant.quant.plain import OutputScale

NO_QUANTIZER = "reads float values: no quantizer before"
NEGATIVE = (
    "a max pool with padding of values that may be negative: put ReLU before it, or pool without "
    "padding"
)
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
        if value.parts:
            return self._put_together(where, value)
        value = self.present(value)
        if value.stream is None:
            return self.problem(where, NO_QUANTIZER, value) if value.known else value
        factors = value.factors()
        if not all(is_power_of_two(factor) for factor in factors):
            return self.problem(where, NO_QUANTIZER, value)
        for _, move in value.moves:
            if move.needs_no_negative and value.stream.lowest < 0:  # type: ignore[union-attr]
                return self.problem(where, NEGATIVE, value)
            # all factors are positive, so that order is kept
            value = replace(value, stream=self.moved(where, value.stream, move))
        return replace(value, functions=factors, held=value.rank, moves=())

    def _put_together(self, where: str, value: Value) -> Value:
        """One stream of parts that are integers of one scale."""
        parts = [self.on_a_grid(where, part) for part in value.parts]
        if any(part.stream is None for part in parts):
            return value.hidden()
        one = torch.ones(1, 1)
        scales = {float(replace(part, held=2).evaluate(one)) for part in parts}
        if len(scales) > 1:
            return self.problem(where, NO_QUANTIZER, value)
        streams = [part.stream for part in parts]
        joined = self.joined(where, streams, value.picks, value.shape)  # type: ignore[arg-type]
        scale = OutputScale(torch.tensor(scales.pop()), None)
        return replace(value.nothing_yet(), stream=joined, functions=(scale,))

    def settled(self, where: str, value: Value) -> Value:
        """A value whose moves do not wait: they are made of the integers as they are.

        For a function that falls, which a max pool cannot wait for. The integers have to rise with
        the values that are pooled.
        """
        if value.parts:
            parts = tuple(self.settled(where, part) for part in value.parts)
            lost = any(part.stream is None and not part.zeros for part in parts)
            return value.hidden() if lost else replace(value, parts=parts)
        value = self.present(value)
        if value.stream is None or not value.moves:
            return value
        last = max(before for before, _ in value.moves)
        first = replace(value, functions=value.functions[:last])
        source = value.stream
        signs = directions(first.evaluate, source.lowest, source.highest, source.shape[0])
        if value.bends or (bool((signs < 0).any()) and not self.can_turn_over(source)):
            advice = (
                "falls behind a max pool of what fell before: put the activation that bends, or "
                "the norm with negative scales, behind a convolution of its own"
            )
            return self.problem(where, advice, value)
        if bool((signs < 0).any()):
            source = self.turn_over(source, signs)
            value = value.turned_over(source, signs)
        for _, move in value.moves:
            if move.needs_no_negative and source.lowest < 0:
                return self.problem(where, NEGATIVE, value)
            source = self.moved(where, source, move)
        return replace(value, stream=source, moves=())

    def moved(self, where: str, stream: Stream, move: Move) -> Stream:
        """Integers after a move.

        Hardware pads a max pool of a signed type with nothing but zeros of its own.
        """
        if isinstance(move, Pooling) and any(move.window.padding) and stream.lowest < 0:
            padding = move.window.padding
            stream = self.moved(where, stream, ZeroPadding(padding, padding))
            move = Pooling(replace(move.window, padding=(0, 0)))
        output = self.stream(move.shape(stream.shape), stream.lowest, stream.highest)
        return self.add(move.layer(where, stream, output))

    def joined(
        self, where: str, streams: Sequence[Stream], picks: Sequence[int], shape: Shape
    ) -> Stream:
        """One stream of several, of some of their channels.

        Args:
            where: module path.
            streams: of one size.
            picks: which of all their channels, -1 for zeros.
            shape: of the result.
        """
        lowest = min(stream.lowest for stream in streams)
        highest = max(stream.highest for stream in streams)
        whole, channels = streams[0], sum(stream.shape[0] for stream in streams)
        if len(streams) > 1:
            output = self.stream((channels, *shape[1:]), lowest, highest)
            whole = self.add(Concatenation(where, tuple(streams), output))
        if tuple(picks) == tuple(range(channels)):
            return whole
        output = self.stream(shape, min(lowest, 0), max(highest, 0))
        return self.add(ChannelPick(where, (whole,), output, tuple(picks)))

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
