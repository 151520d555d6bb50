"""Bit-widths that are learned, and quantizers that run at them: values out, not codes.

For the time of a search a quantizer of codes becomes one of values (`learn`), with the range that
it has; when its bits are whole it becomes what it was (`unlearn`). No tensor is copied, so that an
optimizer never notices.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor, nn

from brevitas_multiquant.core.fractional import fractional_activation, fractional_weight
from brevitas_multiquant.errors import BitWidthError
from brevitas_multiquant.quant.entries import Entry
from brevitas_multiquant.quant.member import Member, has_no_sites
from brevitas_multiquant.quant.tensor_quant import ActivationCodes, QuantArgs, WeightCodes


class Lane(NamedTuple):
    """Output channels that have the same bits.

    Args:
        channels: which.
        bits: real-valued.
        candidates: what they may be rounded to.
    """

    channels: tuple[int, ...]
    bits: float
    candidates: tuple[int, ...]


class LearnedBits(Member, ABC):
    """The bit-width of a tensor, or one for each output channel of a layer's weights.

    Args:
        candidates: whole bits, ascending; it stays between the first and the last.

    Attributes:
        value: real-valued bits, differentiable.
    """

    sites = has_no_sites

    learns_apart = True
    """Its parameters are for no optimizer of the network's."""

    value: Any

    def __init__(self, candidates: Sequence[int]) -> None:
        super().__init__()
        self.candidates = tuple(candidates)

    @property
    def most(self) -> int:
        """The largest candidate."""
        return max(self.candidates[-1], 1)

    @abstractmethod
    def learned(self) -> list[tuple[Tensor, int]]:
        """Its parameters, and how many of each share what one of them would cost alone."""

    @abstractmethod
    def project(self) -> None:
        """Back to what it can be: after each update."""

    @abstractmethod
    def set(self, bits: int | Sequence[int]) -> None:
        """Have whole bits: of the tensor, or of each channel."""

    @abstractmethod
    def lanes(self) -> list[Lane]:
        """Channels that are rounded together; those in none have 0 bits. One at least has some."""

    @abstractmethod
    def activations(self, x: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
        """Values of ``x`` in [0, 1]."""

    @abstractmethod
    def weights(self, weight: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
        """Values of ``weight`` in [-1, 1]."""

    def stored(self, name: str) -> Iterable[Entry]:
        """No file holds it.

        Raises:
            BitWidthError: when it is read.
        """
        refuse = partial(_refuse, name)
        yield Entry("floats", name, self.value.numel(), refuse, refuse)

    def frozen(self, bits: int, name: str) -> nn.Module:
        """It has no plain form.

        Raises:
            BitWidthError: always.
        """
        _refuse(name)


class RealBits(LearnedBits):
    """A real-valued bit-width: the values of the two whole ones beside it are mixed (FracBits).

    Args:
        candidates: whole bits, ascending.
        start: where it starts.
        shape: ``()``, or ``(C, 1, ...)``.
        is_learned: False: it stays where it is.

    Attributes:
        value: a parameter, or a buffer where it is not learned.

    Example:
        >>> bits = RealBits([2, 3, 4], 4.5)
        >>> bits.project()
        >>> bits.value.item(), bits.most
        (4.0, 4)
    """

    value: Tensor

    def __init__(
        self,
        candidates: Sequence[int],
        start: float,
        shape: tuple[int, ...] = (),
        is_learned: bool = True,
    ) -> None:
        super().__init__(candidates)
        value = torch.full(shape, float(start))
        if is_learned:
            self.value = nn.Parameter(value)
        else:
            self.register_buffer("value", value)

    def learned(self) -> list[tuple[Tensor, int]]:
        """Its bits, where they are learned."""
        return [(self.value, self.value.numel())] if self.value.requires_grad else []

    @torch.no_grad()
    def project(self) -> None:
        """Back between its first and last candidate."""
        self.value.clamp_(self.candidates[0], self.candidates[-1])

    @torch.no_grad()
    def set(self, bits: int | Sequence[int]) -> None:
        """Have whole bits."""
        self.value.copy_(self.value.new_tensor(bits).view(self.value.shape))

    def lanes(self) -> list[Lane]:
        """Every channel by itself; the one of most bits keeps some."""
        values = self.value.detach().flatten().tolist()
        keep = values.index(max(values))
        some = tuple(one for one in self.candidates if one)
        each = (some if index == keep else self.candidates for index in range(len(values)))
        return [
            Lane((index,), max(value, of[0]), of)
            for (index, value), of in zip(enumerate(values), each, strict=True)
        ]

    def activations(self, x: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
        """Values in [0, 1]."""
        return fractional_activation(x, lower, upper, self.value, self.most)

    def weights(self, weight: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
        """Values in [-1, 1]."""
        return fractional_weight(weight, lower, upper, self.value, self.most)


def _refuse(name: str, *_: Any) -> NoReturn:
    raise BitWidthError(
        f"{name}: expected whole bits, got a search that has not settled: call its settle() "
        "before the network is saved or exported; a checkpoint of the state dict holds it as it is"
    )


class ActivationValues(ActivationCodes):
    """`ActivationCodes` while their bits are learned: values in [0, 1]."""

    learned_bits: LearnedBits

    @property
    def levels(self) -> int:
        """1: what divides them is in the values."""
        return 1

    def forward(self, x: Tensor) -> QuantArgs:
        """Values of ``x`` (any shape) in [0, 1]."""
        return self._with_metadata(self.learned_bits.activations(x, *self.range_impl(x)))


class WeightValues(WeightCodes):
    """`WeightCodes` while their bits are learned: values in [-1, 1]."""

    are_values = True
    learned_bits: LearnedBits

    @property
    def divisor(self) -> NoReturn:  # type: ignore[override]
        """None: it gives no codes.

        Raises:
            BitWidthError: always.
        """
        _refuse("weights")

    def forward(self, weight: Tensor) -> QuantArgs:
        """Values of ``weight`` (any shape) in [-1, 1]."""
        return self._with_metadata(self.learned_bits.weights(weight, *self.range_impl(weight)))


_LEARNING: Mapping[type, type] = {
    ActivationCodes: ActivationValues,
    WeightCodes: WeightValues,
}
_SETTLED = {learning: settled for settled, learning in _LEARNING.items()}


def learn(codes: ActivationCodes | WeightCodes, bits: LearnedBits) -> None:
    """Let a quantizer run at learned bits from here on; what reads it has to read values.

    Example:
        >>> from brevitas.nn import QuantIdentity
        >>> from brevitas_multiquant.quant.injectors import UintActPerTensorLearnedRange
        >>> from brevitas_multiquant.quant.proxies import activation_tensor_quant
        >>> quantizer = QuantIdentity(act_quant=UintActPerTensorLearnedRange)
        >>> codes, bits = activation_tensor_quant(quantizer), RealBits([2, 3], 2.5)
        >>> learn(codes, bits)
        >>> codes(torch.rand(9))[0].max() <= 1
        tensor(True)
        >>> unlearn(codes)
        >>> codes(torch.rand(9))[0].max() > 1
        tensor(True)
    """
    codes.__class__ = _LEARNING[type(codes)]
    codes.learned_bits = bits


def unlearn(codes: Any) -> None:
    """The inverse of `learn`."""
    del codes.learned_bits
    codes.__class__ = _SETTLED[type(codes)]
