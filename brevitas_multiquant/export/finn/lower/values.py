"""A tensor on its way: integers, and what torch has done to them since."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from brevitas.nn import QuantIdentity
from torch import Tensor, nn

from brevitas_multiquant.export.finn.integer_graph import FINISHES, Stream
from brevitas_multiquant.export.finn.lower.geometry import Pair, Shape
from brevitas_multiquant.export.finn.lower.moves import Move
from brevitas_multiquant.profiles.finn.modules import Divide
from brevitas_multiquant.quant.plain import OutputScale, RangeToCodes, ScaleShift

Function = Callable[[Tensor], Tensor]
"""Something that torch does to each integer."""


@dataclass(frozen=True)
class Finish:
    """What the processor does with all logits of an image: a key of `integer_graph.FINISHES`."""

    name: str

    def __call__(self, x: Tensor) -> Tensor:
        """The same shape."""
        return FINISHES[self.name](x)


@dataclass(frozen=True)
class MeanOfSum:
    """What torch's pool makes of a window with this sum, of values that add up exactly.

    Args:
        pool: torch's, over a window or over the whole map.
        window: height and width of what is averaged.
    """

    pool: nn.Module
    window: Pair

    @property
    def count(self) -> int:
        """How many values are averaged."""
        return self.window[0] * self.window[1]

    def __call__(self, x: Tensor) -> Tensor:
        """The same shape."""
        height, width = self.window
        values = x.reshape(*x.shape[:2], 1, 1)
        made: Tensor = self.pool(F.pad(values, (0, width - 1, 0, height - 1)))
        return made.reshape(x.shape)


@dataclass(frozen=True)
class OnSomeChannels:
    """A function of a tensor, on one of the parts that it was concatenated of.

    Args:
        function: of all channels.
        channels: how many those are.
        places: for each channel of the part, which of them it is; -1 if it is left out.
    """

    function: Function
    channels: int
    places: tuple[int, ...]

    def __call__(self, x: Tensor) -> Tensor:
        """``x`` (n, C) or (n, C, 1, 1) after the function; channels left out stay as they are."""
        used = [own for own, place in enumerate(self.places) if place >= 0]
        there = [self.places[own] for own in used]
        whole = x.new_zeros(x.shape[0], self.channels, *x.shape[2:])
        whole[:, there] = x[:, used]
        made = self.function(whole)
        result = x.reshape(*x.shape[:2], *(1,) * (made.dim() - 2)).clone()
        result[:, used] = made[:, there]
        return result


@dataclass(frozen=True)
class Value:
    """A tensor of the network.

    Args:
        stream: the integers; None for the image, where an earlier problem hides them, and where
            there are ``parts``.
        shape: (C, H, W) of the tensor.
        functions: applied to each integer, in order.
        moves: moves of positions among them, as (number of functions before, move).
        held: rank in which torch holds the stream's integers: 4 as (N, C, H, W), 3 as (N, C, W)
            of height 1, 2 as (N, C).
        rank: the same of the tensor itself.
        known: False behind a problem, so that none is reported that only follows from another.
        bends: whether the functions may fall and rise.
        parts: tensors of which this one was put together, channel by channel; no stream then.
        picks: for each channel which of the parts' channels it is, none twice.
        zeros: a part of zeros alone, with the functions applied to them; no stream either.
    """

    stream: Stream | None
    shape: Shape
    functions: tuple[Function, ...] = ()
    moves: tuple[tuple[int, Move], ...] = ()
    held: int = 4
    rank: int = 4
    known: bool = True
    bends: bool = False
    parts: tuple["Value", ...] = ()
    picks: tuple[int, ...] = ()
    zeros: bool = False

    @property
    def flat(self) -> bool:
        """Whether torch holds the tensor as vectors (N, C)."""
        return self.rank == 2

    def then(self, function: Function, bends: bool = False) -> "Value":
        """The value after one more function; ``bends``: it falls and rises."""
        bends = bends or self.bends
        if self.parts:
            places = [-1] * sum(part.shape[0] for part in self.parts)
            for place, pick in enumerate(self.picks):
                places[pick] = place
            parts, first = [], 0
            for part in self.parts:
                own = tuple(places[first : first + part.shape[0]])
                parts.append(part.then(_on_some(function, len(self.picks), own), bends))
                first += part.shape[0]
            return replace(self, parts=tuple(parts), bends=bends)
        return replace(self, functions=(*self.functions, function), bends=bends)

    def moved(self, move: Move) -> "Value":
        """The value after a move of its positions."""
        shape = move.shape(self.shape)
        if self.parts:
            return replace(self, shape=shape, parts=tuple(part.moved(move) for part in self.parts))
        return replace(self, shape=shape, moves=(*self.moves, (len(self.functions), move)))

    @property
    def waits_in_order(self) -> bool:
        """Whether only functions that rise may come next, since a max pool waits."""
        values = self.parts or (self,)
        return any(move.keeps_order for value in values for _, move in value.moves)

    def picked(self, picks: Sequence[int]) -> "Value":
        """Some of its channels, in any order, none twice."""
        shape = (len(picks), *self.shape[1:])
        if self.parts:
            return replace(self, shape=shape, picks=tuple(self.picks[pick] for pick in picks))
        return replace(self.nothing_yet(), shape=shape, parts=(self,), picks=tuple(picks))

    def nothing_yet(self) -> "Value":
        """The same tensor as one that is put together of parts."""
        return Value(None, self.shape, held=self.rank, rank=self.rank, bends=self.bends)

    def hidden(self) -> "Value":
        """The same tensor where its integers are not known."""
        return Value(None, self.shape, held=self.held, rank=self.rank, known=False)

    def in_rank(self, rank: int) -> "Value":
        """Only how torch holds it changes: as vectors, lines or maps."""
        if rank == self.rank:
            return self
        parts = tuple(part.in_rank(rank) for part in self.parts)
        held = replace(self, rank=rank, parts=parts)
        return held if parts else replace(held, functions=(*self.functions, _RANKS[rank]))

    def turned_over(self, stream: Stream, signs: Tensor) -> "Value":
        """The value of another stream, whose integers are these times the signs (C,)."""
        moves = tuple((before + 1, move) for before, move in self.moves)
        functions: tuple[Function, ...] = (partial(turn_over, signs), *self.functions)
        return replace(self, stream=stream, functions=functions, moves=moves)

    def evaluate(self, integers: Tensor) -> Tensor:
        """Torch's own evaluation of the functions, on integers (n, C)."""
        return self.run(self.functions, integers)

    def run(self, functions: Sequence[Function], integers: Tensor) -> Tensor:
        """Some of the functions, on integers (n, C)."""
        x = integers[(..., *(None,) * (self.held - 2))]
        for function in functions:
            x = function(x)
        return x.reshape(integers.shape)

    def factors(self) -> tuple[Function, ...]:
        """The functions that are more than another way to hold the tensor."""
        return tuple(f for f in self.functions if f not in _RANKS.values())

    def host_side(self) -> tuple[float, Tensor, tuple[str, ...], float]:
        """What makes logits of the last integers: one factor, a bias (C,), a softmax, a divisor."""
        scale, bias = 1.0, torch.zeros(self.shape[0])
        divisor: float = 1
        factors = self.factors()
        finish = tuple(function.name for function in factors if isinstance(function, Finish))
        for function in factors[: len(factors) - len(finish)]:
            if isinstance(function, (MeanOfSum, Divide)):
                divisor *= divisor_of(function)
                continue
            assert isinstance(function, OutputScale)
            scale *= float(function.scale)
            if function.bias is not None:
                bias = function.bias.flatten()
        return scale, bias, finish, divisor


def divisor_of(function: MeanOfSum | Divide) -> float:
    """What a mean divides by."""
    return function.count if isinstance(function, MeanOfSum) else function.divisor


_OF_ANY_CHANNEL = (nn.ReLU, nn.ReLU6, nn.Hardtanh, nn.SiLU, nn.Sigmoid, QuantIdentity)


def _on_some(function: Any, channels: int, places: tuple[int, ...]) -> Function:
    """`OnSomeChannels`, or what computes the same without the other channels."""
    if isinstance(function, _OF_ANY_CHANNEL) or (
        isinstance(function, RangeToCodes) and function.lower.numel() == 1
    ):
        return function
    if isinstance(function, ScaleShift) and min(places) >= 0:
        return ScaleShift(function.scale[list(places)], function.shift[list(places)])
    return OnSomeChannels(function, channels, places)


def _as_vectors(x: Tensor) -> Tensor:
    return x.flatten(1)


def _as_lines(x: Tensor) -> Tensor:
    return x.flatten(1)[:, :, None]


def _as_maps(x: Tensor) -> Tensor:
    return x.flatten(1)[:, :, None, None]


_RANKS: dict[int, Function] = {2: _as_vectors, 3: _as_lines, 4: _as_maps}
"""Of what a table sees, which is one position."""


def turn_over(signs: Tensor, x: Tensor) -> Tensor:
    """``x`` (N, C, ...) with a sign for each channel."""
    return x * signs.view(1, -1, *(1,) * (x.dim() - 2))


def is_power_of_two(function: Any) -> bool:
    """Whether a function multiplies by one power of two: sums of integers may stand behind it."""
    if isinstance(function, MeanOfSum):
        return function.count & (function.count - 1) == 0
    if not isinstance(function, OutputScale) or function.bias is not None:
        return False
    mantissa, _ = torch.frexp(function.scale)
    return bool(mantissa == 0.5)
