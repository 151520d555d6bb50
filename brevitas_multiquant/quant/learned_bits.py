"""Bit-widths that are learned, and quantizers that run at them: values out, not codes.

For the time of a search a quantizer of codes becomes one of values (`learn`), with the range that
it has; when its bits are whole it becomes what it was (`unlearn`). No tensor is copied, so that an
optimizer never notices.
"""

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from brevitas_multiquant.core.fractional import fractional_activation, fractional_weight
from brevitas_multiquant.errors import BitWidthError
from brevitas_multiquant.quant.entries import Entry
from brevitas_multiquant.quant.member import Member, has_no_sites
from brevitas_multiquant.quant.tensor_quant import ActivationCodes, QuantArgs, WeightCodes


class LearnedBits(Member):
    """A real-valued bit-width of a tensor, or one for each output channel of a layer's weights.

    Args:
        candidates: whole bits, ascending; it stays between the first and the last.
        start: where it starts.
        shape: ``()``, or ``(C, 1, ...)``.
        is_learned: False: it stays where it is.

    Attributes:
        value: a parameter, or a buffer where it is not learned.

    Example:
        >>> bits = LearnedBits([2, 3, 4], 4.5)
        >>> bits.project()
        >>> bits.value.item(), bits.most
        (4.0, 4)
    """

    value: Tensor
    sites = has_no_sites

    learns_apart = True
    """Its parameters are for no optimizer of the network's."""

    def __init__(
        self,
        candidates: Sequence[int],
        start: float,
        shape: tuple[int, ...] = (),
        is_learned: bool = True,
    ) -> None:
        super().__init__()
        self.candidates = tuple(candidates)
        value = torch.full(shape, float(start))
        if is_learned:
            self.value = nn.Parameter(value)
        else:
            self.register_buffer("value", value)

    @property
    def most(self) -> int:
        """The largest candidate."""
        return max(self.candidates[-1], 1)

    @torch.no_grad()
    def project(self) -> None:
        """Back between its first and last candidate: after each update."""
        self.value.clamp_(self.candidates[0], self.candidates[-1])

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


def _refuse(name: str, *_: Any) -> NoReturn:
    raise BitWidthError(
        f"{name}: expected whole bits, got a search that has not settled: call its settle() "
        "before the network is saved or exported; a checkpoint of the state dict holds it as it is"
    )


class FractionalActivations(ActivationCodes):
    """`ActivationCodes` while their bits are learned: values in [0, 1]."""

    learned_bits: LearnedBits

    @property
    def levels(self) -> int:
        """1: what divides them is in the values."""
        return 1

    def forward(self, x: Tensor) -> QuantArgs:
        """Values of ``x`` (any shape) in [0, 1]."""
        lower, upper = self.range_impl(x)
        bits = self.learned_bits
        return self._with_metadata(fractional_activation(x, lower, upper, bits.value, bits.most))


class FractionalWeights(WeightCodes):
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
        lower, upper = self.range_impl(weight)
        bits = self.learned_bits
        return self._with_metadata(fractional_weight(weight, lower, upper, bits.value, bits.most))


_LEARNING: Mapping[type, type] = {
    ActivationCodes: FractionalActivations,
    WeightCodes: FractionalWeights,
}
_SETTLED = {learning: settled for settled, learning in _LEARNING.items()}


def learn(codes: ActivationCodes | WeightCodes, bits: LearnedBits) -> None:
    """Let a quantizer run at learned bits from here on; what reads it has to read values.

    Example:
        >>> from brevitas.nn import QuantIdentity
        >>> from brevitas_multiquant.quant.injectors import UintActPerTensorLearnedRange
        >>> from brevitas_multiquant.quant.proxies import activation_tensor_quant
        >>> quantizer = QuantIdentity(act_quant=UintActPerTensorLearnedRange)
        >>> codes, bits = activation_tensor_quant(quantizer), LearnedBits([2, 3], 2.5)
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
