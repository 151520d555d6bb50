"""Functions and methods that a graph calls, as the modules that do the same."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from brevitas_multiquant.export.finn.lower.rules import FirstChannels

Make = Callable[[fx.Node], nn.Module | None]


def _argument(node: fx.Node, place: int, name: str, default: Any = None) -> Any:
    return node.args[place] if len(node.args) > place else node.kwargs.get(name, default)


def _always(module: type[nn.Module], *names: str) -> Make:
    """A module whose arguments are those of the function, behind its input, under these names."""

    def make(node: fx.Node) -> nn.Module:
        given = {name: _argument(node, 1 + place, name) for place, name in enumerate(names)}
        return module(**{name: value for name, value in given.items() if value is not None})

    return make


def _clamp(node: fx.Node) -> nn.Module | None:
    lowest, highest = _argument(node, 1, "min"), _argument(node, 2, "max")
    if any(isinstance(bound, fx.Node) for bound in (lowest, highest)):
        return None
    infinity = float("inf")
    return nn.Hardtanh(
        -infinity if lowest is None else lowest, infinity if highest is None else highest
    )


def _pool(module: type[nn.Module]) -> Make:
    """A pool whose arguments are those of the function, where they are numbers."""

    def make(node: fx.Node) -> nn.Module | None:
        arguments: Any = node.args[1:]
        options: Any = {name: value for name, value in node.kwargs.items() if name != "input"}
        if any(isinstance(value, fx.Node) for value in (*arguments, *options.values())):
            return None
        return module(*arguments, **options)

    return make


def _mean(node: fx.Node) -> nn.Module | None:
    dims, keeps = _argument(node, 1, "dim"), _argument(node, 2, "keepdim", False)
    if not isinstance(dims, (tuple, list)) or {dim % 4 for dim in dims} != {2, 3}:
        return None
    pool = nn.AdaptiveAvgPool2d(1)
    return pool if keeps else nn.Sequential(pool, nn.Flatten())


def _narrow(node: fx.Node) -> nn.Module | None:
    if node.args[1:3] != (1, 0):
        return None
    channels: Any = node.args[3]
    return FirstChannels(int(channels))


_MODULE_OF: dict[Any, Make] = {
    **dict.fromkeys((torch.relu, F.relu, "relu"), _always(nn.ReLU)),
    F.relu6: _always(nn.ReLU6),
    F.leaky_relu: _always(nn.LeakyReLU, "negative_slope"),
    F.elu: _always(nn.ELU, "alpha"),
    F.hardtanh: _always(nn.Hardtanh, "min_val", "max_val"),
    F.hardsigmoid: _always(nn.Hardsigmoid),
    F.softplus: _always(nn.Softplus, "beta", "threshold"),
    **dict.fromkeys((torch.sigmoid, F.sigmoid, "sigmoid"), _always(nn.Sigmoid)),
    **dict.fromkeys((torch.tanh, F.tanh, "tanh"), _always(nn.Tanh)),
    **dict.fromkeys((torch.clamp, torch.clip, "clamp", "clip"), _clamp),
    **dict.fromkeys((torch.softmax, F.softmax, "softmax"), _always(nn.Softmax, "dim")),
    **dict.fromkeys(
        (torch.log_softmax, F.log_softmax, "log_softmax"), _always(nn.LogSoftmax, "dim")
    ),
    F.silu: _always(nn.SiLU),
    F.hardswish: _always(nn.Hardswish),
    F.gelu: _always(nn.GELU),
    F.max_pool2d: _pool(nn.MaxPool2d),
    F.avg_pool2d: _pool(nn.AvgPool2d),
    F.adaptive_avg_pool2d: _always(nn.AdaptiveAvgPool2d, "output_size"),
    F.adaptive_max_pool2d: _always(nn.AdaptiveMaxPool2d, "output_size"),
    **dict.fromkeys((torch.flatten, "flatten", "view", "reshape", "squeeze"), _always(nn.Flatten)),
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
