"""``torch.compile`` for a network of many bit-widths.

PyTorch keeps a few graphs of one function (8 unless told otherwise) and runs what needs another one
uncompiled. A graph is of one bit-width, in training or in evaluation: five bit-widths are too many.
So each bit-width is a function of its own here, and another one serves every assignment of bits to
sites: its graph reads the bits as tensors (`core.told`).

The graphs of one body are the same at every bit-width but for the tensors that they read, so that
torch generates and compiles code for one of them and finds it in its cache for the others.
"""

import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any, Protocol
from weakref import WeakKeyDictionary

import torch
import torch._dynamo
from torch import Tensor, nn

from brevitas_multiquant.core.clip_quantize import activation_levels
from brevitas_multiquant.core.panel import Dial, Panel, Setting
from brevitas_multiquant.core.precision import Assignment
from brevitas_multiquant.core.told import Told
from brevitas_multiquant.nn.switchable import Switchable

Function = Callable[..., Any]


class Switched(Protocol):
    """What runs at one of several bit-widths."""

    _active: Panel

    @property
    def bits(self) -> tuple[int, ...]:
        """The candidates."""

    @property
    def active_bits(self) -> int:
        """The one that runs."""

    @property
    def setting(self) -> Setting:
        """The same, or the assignment that runs."""

    def modules(self) -> Iterable[nn.Module]:
        """As `torch.nn.Module` has it."""


_apart: ContextVar[bool] = ContextVar("bit-widths are compiled apart", default=False)


def compiled_by_bits(net: Switched, function: Function, **options: Any) -> Function:
    """A function compiled once for each bit-width, and run at the one that is active.

    Once more for all assignments that have its branches, norms and ranges. Where the bits of sites
    choose norms or ranges, as in Bit-Mixer, a graph is of one choice: assignments run uncompiled
    then, which is said once.

    Args:
        net: the network.
        function: runs the network, or a part of it.
        **options: of ``torch.compile``.

    Returns:
        A function of the same arguments.
    """
    names = [f"at_{bit}_bits" for bit in net.bits] + [f"assigned_at_{bit}" for bit in net.bits]
    compiled = {name: torch.compile(_of_its_own(function, name), **options) for name in names}
    by_sites = any(isinstance(one, Switchable) and one.is_of_sites for one in net.modules())
    one_body = net._active.weight_bits is None and len(net.bits) > 1
    told_of = False

    def tells(args: tuple[Any, ...]) -> AbstractContextManager[None]:
        device = next(one.device for one in args if isinstance(one, Tensor))
        return telling(net._active, device, max(net.bits))

    def run(*args: Any, **kwargs: Any) -> Any:
        nonlocal told_of
        if not isinstance(net.setting, Assignment):
            with _compiled_apart(), tells(args) if one_body else nullcontext():
                return compiled[f"at_{net.active_bits}_bits"](*args, **kwargs)
        if by_sites:
            told_of = told_of or _warn_of_sites()
            return function(*args, **kwargs)
        with _compiled_apart(), tells(args):
            return compiled[f"assigned_at_{net.active_bits}"](*args, **kwargs)

    return run


def _of_its_own(function: Function, name: str) -> Function:
    """A function with code of its own: graphs are kept, and counted, for each code object."""

    def call(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    call.__code__ = call.__code__.replace(co_name=name)
    return call


@contextmanager
def _compiled_apart() -> Iterator[None]:
    token = _apart.set(True)
    try:
        yield
    finally:
        _apart.reset(token)


_TOLD: WeakKeyDictionary[Dial, dict[Any, Told]] = WeakKeyDictionary()
"""Tensors that dials have told, which never change: a graph may have yet to run backward."""


@contextmanager
def telling(panel: Panel, device: torch.device, widest: int) -> Iterator[None]:
    """Inside the block the dials of a network tell graphs their bits as tensors.

    Args:
        panel: of the network.
        device: of the tensors.
        widest: the network's largest bit-width.
    """
    dials = list(panel.dials.values())
    for dial in dials:
        dial.told = _told(dial, device, widest)
    panel.telling = True
    try:
        yield
    finally:
        panel.telling = False
        for dial in dials:
            dial.told = None


def _told(dial: Dial, device: torch.device, widest: int) -> Told:
    """A tensor for each dial, equal ones too: graphs take two inputs that are one for one."""
    known = _TOLD.setdefault(dial, {})
    key = dial.weight, dial.bits, device
    if key not in known:
        weight = torch.tensor([dial.weight], device=device)
        levels = torch.tensor(float(activation_levels(dial.bits)), device=device)
        known[key] = Told(weight, levels, widest)
    return known[key]


def _warn_of_sites() -> bool:
    warnings.warn(
        "net.compile: expected a bit-width, or a network whose norms and ranges bit-widths choose, "
        "got an assignment of a network whose norms and ranges the bits of its sites choose: a "
        "graph would be of this assignment alone, so it runs uncompiled. "
        "torch.compile(extract_subnet(net, assignment)) compiles one for evaluation",
        stacklevel=4,
    )
    return True


@torch.compiler.assume_constant_result
def warn_of_graphs(bit_widths: int, assigned: bool) -> None:
    """While a network is compiled as one function: say so where it has too many bit-widths.

    Args:
        bit_widths: how many.
        assigned: whether it runs at an assignment, of which there are many more.
    """
    kept = torch._dynamo.config.recompile_limit
    if _apart.get() or torch.compiler.is_exporting():
        return
    if assigned:
        warnings.warn(
            f"torch.compile makes a graph for each assignment, keeps {kept} of one function and "
            "runs the rest uncompiled. Call net.compile() instead of torch.compile(net): it has "
            "one graph for all assignments",
            stacklevel=2,
        )
    if 2 * bit_widths <= kept:
        return
    warnings.warn(
        f"torch.compile keeps {kept} graphs of one function and runs the rest uncompiled; this "
        f"network needs {2 * bit_widths}, one for each of {bit_widths} bit-widths in training and "
        "in evaluation. Call net.compile() instead of torch.compile(net): it compiles each "
        "bit-width apart",
        stacklevel=2,
    )
