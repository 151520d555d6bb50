"""Other modules around the same tensors."""

from collections.abc import Mapping
from types import MethodType
from typing import Any

import torch
from torch import nn

_SHARED = ("_parameters", "_buffers")
_LEFT_BEHIND = ("_compiled_call_impl", "forward", "forward_with_stand_ins")


def twin_of(module: Any, replaced: Mapping[int, Any]) -> Any:
    """The same modules once more, around the same parameters and buffers; no tensor is copied.

    The twin has modes, hooks and attributes of its own, which start as the module's. Parameters
    and buffers stand in dictionaries that both have, so that a tensor that is replaced in one is
    replaced in the other. What wraps the forward of an instance, as ``torch.compile`` does, stays
    behind: it would run the original. Code is shared: the graph of a graph module, TorchScript.

    Args:
        module: the root.
        replaced: identity of an object that modules hold -> what the twin's hold instead.

    Example:
        >>> linear = nn.Linear(2, 2)
        >>> twin = twin_of(linear, {}).eval()
        >>> twin.weight is linear.weight, linear.training
        (True, True)
    """
    done = dict(replaced)

    def of_module(old: nn.Module) -> nn.Module:
        if isinstance(old, torch.jit.ScriptModule):
            return old
        new = done[id(old)] = object.__new__(type(old))
        for name, value in old.__dict__.copy().items():
            if name in _SHARED:
                new.__dict__[name] = value
            elif name not in _LEFT_BEHIND:
                new.__dict__[name] = of_value(value)
        return new

    def of_value(value: Any) -> Any:
        if id(value) in done:
            return done[id(value)]
        if isinstance(value, nn.Module):
            return of_module(value)
        if isinstance(value, dict):
            other = value.copy()
            other.update([(key, of_value(item)) for key, item in other.items()])
            return other
        if type(value) in (list, tuple):
            return type(value)(of_value(item) for item in value)
        if isinstance(value, MethodType) and isinstance(value.__self__, nn.Module):
            return MethodType(value.__func__, of_value(value.__self__))
        return value

    return of_module(module)
