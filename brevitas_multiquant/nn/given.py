"""The network in what a function was given: wrapped for training, or not one at all."""

from typing import Any, NoReturn

import torch
from torch import nn
from torch._dynamo.eval_frame import OptimizedModule
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

from brevitas_multiquant.errors import NetworkError, PrecisionError
from brevitas_multiquant.nn.network import MultiQuantNet

_WRAPPERS: dict[type[nn.Module], str] = {
    DataParallel: "module",
    DistributedDataParallel: "module",
    AveragedModel: "module",
    OptimizedModule: "_orig_mod",
}
"""Holds a network that has all of its tensors -> under which name."""


def given_network(net: Any, caller: str) -> MultiQuantNet:
    """The network itself, without what wraps it: DataParallel, DDP, ``torch.compile``.

    Args:
        net: what a user gave.
        caller: the function it was given to.

    Raises:
        NetworkError: no `MultiQuantNet`, nor one that can be unwrapped.

    Example:
        >>> given_network(nn.Linear(1, 1), "cost")
        Traceback (most recent call last):
        brevitas_multiquant.errors.NetworkError: cost: expected a MultiQuantNet, got Linear; \
call multiquantize(model, bits) first and pass what it returns
    """
    inner = net
    while (name := _wrapped_as(inner)) is not None:
        inner = getattr(inner, name)
    return inner if isinstance(inner, MultiQuantNet) else _refuse(net, inner, caller)


def float32_network(net: Any, caller: str) -> MultiQuantNet:
    """`given_network`, whose numbers are those of the arithmetic that files are checked in.

    Raises:
        NetworkError: as of `given_network`.
        PrecisionError: a parameter or buffer in another floating point type.
    """
    inner = given_network(net, caller)
    for name, tensor in (*inner.named_parameters(), *inner.named_buffers()):
        if tensor.is_floating_point() and tensor.dtype != torch.float32:
            raise PrecisionError(
                f"{caller}: expected a network in float32, got {tensor.dtype} in {name}; call "
                "net.float() first"
            )
    return inner


def bare_network(net: Any, caller: str, advice: str) -> MultiQuantNet:
    """The network, where a wrapper cannot be taken off without losing what it does.

    Raises:
        NetworkError: wrapped, or no `MultiQuantNet`.
    """
    if isinstance(net, MultiQuantNet):
        return net
    given_network(net, caller)
    raise NetworkError(f"{caller}: expected the MultiQuantNet itself, got {_called(net)}; {advice}")


def networks_in(model: Any, caller: str, advice: str) -> list[MultiQuantNet]:
    """The network that a model is, or those that it holds, as a detector does.

    Raises:
        NetworkError: it holds none, or wraps one.
    """
    holds = isinstance(model, nn.Module) and _wrapped_as(model) is None
    held = [part for part in model.modules() if isinstance(part, MultiQuantNet)] if holds else []
    return held or [bare_network(model, caller, advice)]


def _wrapped_as(module: Any) -> str | None:
    return next((name for kind, name in _WRAPPERS.items() if isinstance(module, kind)), None)


def _refuse(net: Any, inner: Any, caller: str) -> NoReturn:
    got = _called(net) if inner is net else f"{_called(net)} around {_called(inner)}"
    raise NetworkError(f"{caller}: expected a MultiQuantNet, got {got}; {_advice(inner)}")


def _advice(given: Any) -> str:
    if not isinstance(given, nn.Module):
        return "pass what multiquantize(model, bits) returns"
    if type(given).__name__ == "FullyShardedDataParallel":
        return "gather its parameters on one process, and pass a network that has loaded them"
    if hasattr(given, "bits") and hasattr(given, "merge"):
        return "a subnet is one bit-width alone: pass the network it was extracted from"
    found = (name for name, part in given.named_modules() if isinstance(part, MultiQuantNet))
    inside = next(found, None)
    if inside is not None:
        return f"it holds one: pass its .{inside}"
    return "call multiquantize(model, bits) first and pass what it returns"


def _called(given: Any) -> str:
    """The type's name; what ``torch.compile`` makes has that of the module inside."""
    return "a compiled module" if isinstance(given, OptimizedModule) else type(given).__name__
