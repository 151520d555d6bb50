"""Functions of single numbers that a network calls by name, and that no module stands for."""

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

RISES: set[Any] = {
    *(F.selu, torch.selu, F.celu, torch.celu, F.softsign, F.logsigmoid, F.tanhshrink),
    *(F.hardshrink, torch.hardshrink, F.softshrink, torch.exp, torch.expm1, torch.erf),
    *(torch.atan, torch.arctan, torch.asinh, torch.sinh, torch.clamp_min, torch.clamp_max),
    *("exp", "expm1", "erf", "atan", "arctan", "asinh", "sinh", "clamp_min", "clamp_max"),
    *("hardshrink", F.rrelu),
}
"""Functions and methods that only rise; what torch rounds is looked at when tables are made."""
BENDS: set[Any] = {
    *(torch.abs, torch.absolute, torch.square, torch.sin, torch.cos, F.threshold, F.prelu),
    *("abs", "absolute", "square", "sin", "cos", "prelu"),
}
"""Those that fall somewhere, or may."""
POWERS: set[Any] = {torch.pow, operator.pow, "pow", "__pow__"}


@dataclass(frozen=True)
class Pointwise:
    """A function of every number by itself.

    Args:
        function: of a tensor and the arguments.
        args: behind the tensor: numbers, or a number for each channel.
        kwargs: those by name.
        bends: whether it may fall and rise.
    """

    function: Callable[..., Tensor]
    args: Sequence[Any] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    bends: bool = False

    def __call__(self, x: Tensor) -> Tensor:
        """The same shape."""
        return self.function(x, *self.args, **self.kwargs)


def pointwise(
    target: Any, function: Callable[..., Tensor], args: Sequence[Any], kwargs: dict[str, Any]
) -> Pointwise | None:
    """A call as a function of every number by itself; None if it is none that is known.

    Args:
        target: what the graph calls.
        function: the same, of a tensor.
        args: behind the tensor.
        kwargs: those by name.
    """
    if target in POWERS:
        exponent = (*args, kwargs.get("exponent"))[0]
        whole = isinstance(exponent, int) and not isinstance(exponent, bool) and exponent > 0
        return Pointwise(function, args, kwargs, True) if whole else None
    if target in RISES or target in BENDS:
        return Pointwise(function, args, kwargs, target in BENDS)
    return None
