"""A tensor on its way: integers, and what torch has done to them since."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from brevitas_multiquant.export.finn.integer_graph import FINISHES, Stream
from brevitas_multiquant.quant.plain import OutputScale

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
class Value:
    """A tensor of the network.

    Args:
        stream: the integers; None for the image, and where an earlier problem hides them.
        shape: (C, H, W) of the tensor.
        functions: applied to each integer, in order.
        pools: max pools among them, as (number of functions before, pool).
        vector: whether torch holds the stream's integers as (N, C), not as (N, C, H, W).
        flat: the same of the tensor itself.
        known: False behind a problem, so that none is reported that only follows from another.
    """

    stream: Stream | None
    shape: tuple[int, int, int]
    functions: tuple[Function, ...] = ()
    pools: tuple[tuple[int, nn.MaxPool2d], ...] = ()
    vector: bool = False
    flat: bool = False
    known: bool = True

    def then(self, function: Function) -> "Value":
        """The value after one more function."""
        return replace(self, functions=(*self.functions, function))

    def hidden(self) -> "Value":
        """The same tensor where its integers are not known."""
        return replace(self, stream=None, known=False, functions=(), pools=())

    def flattened(self) -> "Value":
        """Only how torch holds it changes."""
        return self if self.flat else replace(self.then(flatten), flat=True)

    def turned_over(self, stream: Stream, signs: Tensor) -> "Value":
        """The value of another stream, whose integers are these times the signs (C,)."""
        return replace(self, stream=stream, functions=(partial(turn_over, signs), *self.functions))

    def evaluate(self, integers: Tensor) -> Tensor:
        """Torch's own evaluation of the functions, on integers (n, C)."""
        x = integers if self.vector else integers[:, :, None, None]
        for function in self.functions:
            x = function(x)
        return x.reshape(integers.shape)

    def factors(self) -> tuple[Function, ...]:
        """The functions that are more than another way to hold the tensor."""
        return tuple(function for function in self.functions if function is not flatten)

    def host_side(self) -> tuple[float, Tensor, tuple[str, ...]]:
        """What makes logits of the last integers: one factor, the bias (C,), a softmax."""
        scale, bias = 1.0, torch.zeros(self.shape[0])
        factors = self.factors()
        finish = tuple(function.name for function in factors if isinstance(function, Finish))
        for function in factors[: len(factors) - len(finish)]:
            assert isinstance(function, OutputScale)
            scale *= float(function.scale)
            if function.bias is not None:
                bias = function.bias.flatten()
        return scale, bias, finish


def flatten(x: Tensor) -> Tensor:
    """(N, C, 1, 1) as (N, C)."""
    return x.flatten(1)


def turn_over(signs: Tensor, x: Tensor) -> Tensor:
    """``x`` (N, C, ...) with a sign for each channel."""
    return x * signs.view(1, -1, *(1,) * (x.dim() - 2))


def is_power_of_two(function: Any) -> bool:
    """Whether a function multiplies by one power of two: sums of integers may stand behind it."""
    if not isinstance(function, OutputScale) or function.bias is not None:
        return False
    mantissa, _ = torch.frexp(function.scale)
    return bool(mantissa == 0.5)
