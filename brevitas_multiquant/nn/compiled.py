"""``torch.compile`` for a network of many bit-widths.

PyTorch keeps a few graphs of one function (8 unless told otherwise) and runs what needs another one
uncompiled. A graph is of one bit-width, in training or in evaluation: five bit-widths are too many.
So each bit-width is a function of its own here.
"""

import warnings
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any, Protocol

import torch
import torch._dynamo

Function = Callable[..., Any]


class Switched(Protocol):
    """What runs at one of several bit-widths."""

    @property
    def bits(self) -> tuple[int, ...]:
        """The candidates."""

    @property
    def active_bits(self) -> int:
        """The one that runs."""


_apart: ContextVar[bool] = ContextVar("bit-widths are compiled apart", default=False)


def compiled_by_bits(net: Switched, function: Function, **options: Any) -> Function:
    """A function compiled once for each bit-width, and run at the one that is active.

    Args:
        net: the network.
        function: runs the network, or a part of it.
        **options: of ``torch.compile``.

    Returns:
        A function of the same arguments.
    """
    compiled = {bit: torch.compile(_of_its_own(function, bit), **options) for bit in net.bits}

    def run(*args: Any, **kwargs: Any) -> Any:
        token = _apart.set(True)
        try:
            return compiled[net.active_bits](*args, **kwargs)
        finally:
            _apart.reset(token)

    return run


def _of_its_own(function: Function, bits: int) -> Function:
    """A function with code of its own: graphs are kept, and counted, for each code object."""

    def call(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    call.__code__ = call.__code__.replace(co_name=f"at_{bits}_bits")
    return call


@torch.compiler.assume_constant_result
def warn_of_graphs(bit_widths: int) -> None:
    """While a network is compiled as one function: say so where it has too many bit-widths.

    Args:
        bit_widths: how many.
    """
    kept = torch._dynamo.config.recompile_limit
    if 2 * bit_widths <= kept or _apart.get() or torch.compiler.is_exporting():
        return
    warnings.warn(
        f"torch.compile keeps {kept} graphs of one function and runs the rest uncompiled; this "
        f"network needs {2 * bit_widths}, one for each of {bit_widths} bit-widths in training and "
        "in evaluation. Call net.compile() instead of torch.compile(net): it compiles each "
        "bit-width apart",
        stacklevel=2,
    )
