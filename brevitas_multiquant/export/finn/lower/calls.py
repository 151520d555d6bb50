"""Functions and methods that a graph calls, as the modules that do the same."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from brevitas_multiquant.export.finn.lower.rules import FirstChannels


def _relu(node: fx.Node) -> nn.Module:
    return nn.ReLU()


def _max_pool(node: fx.Node) -> nn.Module:
    arguments: Any = node.args[1:]
    options: Any = {name: value for name, value in node.kwargs.items() if name != "input"}
    return nn.MaxPool2d(*arguments, **options)


def _flatten(node: fx.Node) -> nn.Module:
    return nn.Flatten()


def _adaptive_average(node: fx.Node) -> nn.Module:
    sizes: Any = node.args[1] if len(node.args) > 1 else node.kwargs["output_size"]
    return nn.AdaptiveAvgPool2d(sizes)


def _mean(node: fx.Node) -> nn.Module | None:
    dims: Any = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
    keeps = node.args[2] if len(node.args) > 2 else node.kwargs.get("keepdim", False)
    if not isinstance(dims, (tuple, list)) or {dim % 4 for dim in dims} != {2, 3}:
        return None
    pool = nn.AdaptiveAvgPool2d(1)
    return pool if keeps else nn.Sequential(pool, nn.Flatten())


def _narrow(node: fx.Node) -> nn.Module | None:
    if node.args[1:3] != (1, 0):
        return None
    channels: Any = node.args[3]
    return FirstChannels(int(channels))


_MODULE_OF: dict[Any, Callable[[fx.Node], nn.Module | None]] = {
    **dict.fromkeys((torch.relu, F.relu, "relu"), _relu),
    F.max_pool2d: _max_pool,
    **dict.fromkeys((torch.flatten, "flatten", "view", "reshape", "squeeze"), _flatten),
    F.adaptive_avg_pool2d: _adaptive_average,
    **dict.fromkeys((torch.mean, "mean"), _mean),
    "narrow": _narrow,
}


def as_module(node: fx.Node) -> nn.Module | None:
    """A module that does what the node does; None for anything that hardware has no layer for."""
    make = _MODULE_OF.get(node.target)
    return None if make is None else make(node)


def name_of(node: fx.Node) -> str:
    """What a user calls the function."""
    return node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
