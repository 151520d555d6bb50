"""What functions and methods that a graph calls become."""

import operator
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves

from brevitas_multiquant.export.finn.lower.builder import Builder
from brevitas_multiquant.export.finn.lower.joins import ZeroChannels, concatenate
from brevitas_multiquant.export.finn.lower.layout import OPERATIONS, Laid, lay, run, settle
from brevitas_multiquant.export.finn.lower.pointwise import pointwise
from brevitas_multiquant.export.finn.lower.reductions import LARGEST_WITH_PLACES, reduced
from brevitas_multiquant.export.finn.lower.registry import apply_rule, unknown
from brevitas_multiquant.export.finn.lower.rules import FirstChannels, after
from brevitas_multiquant.export.finn.lower.values import Finish, Value
from brevitas_multiquant.nn.traced_size import images_of_size

Make = Callable[..., nn.Module | None]
"""Arguments of a call, behind its tensor -> the module; None if there is none."""


def _always(module: type[nn.Module], *names: str) -> Make:
    """A module whose arguments are those of the function, behind its input, under these names."""

    def make(*args: Any, **kwargs: Any) -> nn.Module:
        given = dict(zip(names, args, strict=False)) | {
            n: kwargs.get(n) for n in names[len(args) :]
        }
        return module(**{name: value for name, value in given.items() if value is not None})

    return make


def _clamp(lowest: Any = None, highest: Any = None, **kwargs: Any) -> nn.Module | None:
    bounds = kwargs.get("min", lowest), kwargs.get("max", highest)
    if any(isinstance(bound, Tensor) for bound in bounds):
        return None
    infinity = float("inf")
    low, high = bounds
    return nn.Hardtanh(-infinity if low is None else low, infinity if high is None else high)


def _to(*args: Any, **kwargs: Any) -> nn.Module | None:
    """To a device, or to fp32, which tensors have."""
    asked = [one for one in (*args, *kwargs.values()) if isinstance(one, torch.dtype)]
    return nn.Identity() if set(asked) <= {torch.float32} else None


def _narrow(dim: Any, start: Any, length: Any) -> nn.Module | None:
    return FirstChannels(int(length)) if (dim, start) == (1, 0) else None


def _interpolate(
    size: Any = None, scale_factor: Any = None, mode: str = "nearest", **_: Any
) -> nn.Module:
    return nn.Upsample(size, scale_factor, mode)


def _pad(pad: Sequence[int], mode: str = "constant", value: Any = None) -> nn.Module | None:
    if mode != "constant" or value or len(pad) not in (2, 4, 6) or len(pad) % 2:
        return None
    around = (*pad, 0, 0)[:4]
    channels = tuple(pad[4:]) or (0, 0)
    spatial = nn.ZeroPad2d(around)  # type: ignore[arg-type]
    return nn.Sequential(spatial, ZeroChannels(*channels)) if any(channels) else spatial


_MODULE_OF: dict[Any, Make] = {
    **dict.fromkeys((torch.relu, F.relu, "relu", "relu_"), _always(nn.ReLU)),
    F.relu6: _always(nn.ReLU6),
    F.leaky_relu: _always(nn.LeakyReLU, "negative_slope"),
    F.elu: _always(nn.ELU, "alpha"),
    F.hardtanh: _always(nn.Hardtanh, "min_val", "max_val"),
    F.hardsigmoid: _always(nn.Hardsigmoid),
    F.softplus: _always(nn.Softplus, "beta", "threshold"),
    **dict.fromkeys((torch.sigmoid, F.sigmoid, "sigmoid", "sigmoid_"), _always(nn.Sigmoid)),
    **dict.fromkeys((torch.tanh, F.tanh, "tanh"), _always(nn.Tanh)),
    **dict.fromkeys((torch.clamp, torch.clip, "clamp", "clip", "clamp_"), _clamp),
    **dict.fromkeys((torch.softmax, F.softmax, "softmax"), _always(nn.Softmax, "dim")),
    **dict.fromkeys(
        (torch.log_softmax, F.log_softmax, "log_softmax"), _always(nn.LogSoftmax, "dim")
    ),
    F.silu: _always(nn.SiLU),
    F.hardswish: _always(nn.Hardswish),
    F.gelu: _always(nn.GELU, "approximate"),
    F.mish: _always(nn.Mish),
    F.max_pool1d: nn.MaxPool1d,
    F.avg_pool1d: nn.AvgPool1d,
    F.adaptive_avg_pool1d: _always(nn.AdaptiveAvgPool1d, "output_size"),
    **dict.fromkeys((F.max_pool2d, torch.max_pool2d), nn.MaxPool2d),
    F.avg_pool2d: nn.AvgPool2d,
    F.adaptive_avg_pool2d: _always(nn.AdaptiveAvgPool2d, "output_size"),
    F.adaptive_max_pool2d: _always(nn.AdaptiveMaxPool2d, "output_size"),
    F.interpolate: _interpolate,
    F.pad: _pad,
    **dict.fromkeys((F.dropout, images_of_size), lambda *_, **__: nn.Identity()),
    **dict.fromkeys(("clone", torch.clone, "detach", "float"), lambda *_, **__: nn.Identity()),
    "to": _to,
    "narrow": _narrow,
}

ZEROS = {torch.zeros_like, "new_zeros"}
CONCATENATIONS = {torch.cat, torch.concat, torch.concatenate}
ARITHMETIC = {
    *(operator.add, operator.sub, operator.mul, operator.truediv, operator.neg),
    *(torch.add, torch.sub, torch.mul, torch.div, torch.neg, torch.multiply),
    *(torch.maximum, torch.minimum, "maximum", "minimum"),
    *("add", "sub", "mul", "div", "neg", "add_", "mul_", "sub_", "div_"),
    *(operator.iadd, operator.imul, operator.isub, operator.itruediv),
}


def call(builder: Builder, where: str, node: fx.Node, args: Any, kwargs: Any) -> Any:
    """What a function or method makes of its inputs: a tensor, several of them, or sizes.

    Args:
        builder: the network so far.
        where: module path.
        node: the call.
        args: its arguments, values in the place of tensors.
        kwargs: those by name.
    """
    tensors = [one for one in tree_leaves((args, kwargs)) if isinstance(one, (Value, Laid))]
    pieces = node.target in (operator.getitem, getattr) and isinstance(args[0], (tuple, list))
    if pieces or not tensors:
        return _function(node)(*args, **kwargs)
    name = getattr(node.target, "__name__", str(node.target))
    if node.target in CONCATENATIONS and args[1:] in ((), (1,)) and kwargs.get("dim", 1) == 1:
        whole = args[0] if args else kwargs["tensors"]
        return concatenate(builder, where, [_part(builder, where, one) for one in whole])
    if _is_arithmetic(node, args, kwargs):
        operands = [settle(builder, where, one) if one in tensors else one for one in args]
        return _arithmetic(builder, where, node, operands)
    if len(tensors) == 1 and (args[:1] or (kwargs.pop("input"),))[0] is tensors[0]:
        made = _of_one_tensor(builder, where, node, tensors[0], args[1:], kwargs)
        if made is not None:
            return made
    if node.target in ARITHMETIC and "alpha" in kwargs:
        advice = f"{name} with alpha has no dataflow layer here: use x + alpha * y"
        return builder.problem(where, advice, settle(builder, where, tensors[0]))
    return unknown(builder, where, name, settle(builder, where, tensors[0]))


def _part(builder: Builder, where: str, one: Value | Laid | Tensor) -> Value:
    """A tensor of a concatenation; zeros are one, too."""
    if not isinstance(one, Tensor):
        return settle(builder, where, one)
    channels, height, width = (*one.shape[1:], 1, 1)[:3]
    value = Value(None, (channels, height, width), held=one.dim(), rank=one.dim(), zeros=True)
    if bool(one.any()):
        return builder.problem(where, "concatenates constants: zeros alone have a layer", value)
    return value


def _is_arithmetic(node: fx.Node, args: Sequence[Any], kwargs: dict[str, Any]) -> bool:
    """Whether a call computes with tensors, or a tensor and constants, number by number."""
    if node.target in LARGEST_WITH_PLACES:  # of two tensors, of no dimension
        return len(args) == 2 and isinstance(args[1], (Value, Laid, Tensor)) and not kwargs
    return node.target in ARITHMETIC and not kwargs


def _of_one_tensor(
    builder: Builder, where: str, node: fx.Node, tensor: Value | Laid, args: Any, kwargs: Any
) -> Any:
    """What a call makes of a tensor and constants; None for one that is not known."""
    if node.target in ZEROS:
        return _function(node)(lay(tensor).places, *args, **kwargs).float()
    made = reduced(builder, where, node.target, tensor, args, kwargs)
    if made is not None:
        return made
    module = _as_module(node.target, args, kwargs)
    if module is not None:
        return apply_rule(builder, where, module, [settle(builder, where, tensor)])
    function = pointwise(node.target, _function(node), args, kwargs)
    if function is not None:
        value = settle(builder, where, tensor)
        return after(builder, where, function, value, bends=function.bends)
    if node.target in OPERATIONS:
        return _laid(builder, where, node, tensor, args, kwargs)
    return None


def _function(node: fx.Node) -> Callable[..., Any]:
    if not isinstance(node.target, str):
        return node.target
    method: str = node.target
    return lambda own, *args, **kwargs: getattr(own, method)(*args, **kwargs)


def _as_module(target: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> nn.Module | None:
    """A module that does what a call does; None for anything that hardware has no layer for."""
    make = _MODULE_OF.get(target)
    options = {name: value for name, value in kwargs.items() if name not in ("input", "inplace")}
    return None if make is None else make(*args, **options)


def _laid(
    builder: Builder, where: str, node: fx.Node, tensor: Value | Laid, args: Any, kwargs: Any
) -> Any:
    laid = lay(tensor)
    if node.target is getattr and args[0] in ("values", "indices"):
        return laid.value  # of a maximum that is not known
    try:
        return run(_function(node), laid, *args, **kwargs)
    except (RuntimeError, IndexError, TypeError, ValueError):
        if laid.value.known:
            raise
        return laid.value  # behind a problem, shapes may be unknown too


def _arithmetic(builder: Builder, where: str, node: fx.Node, operands: Sequence[Any]) -> Value:
    """A tensor and a number, or a number for each channel."""
    name = getattr(node.target, "__name__", str(node.target)).strip("_").removeprefix("i")
    operands = [_as_number(one) for one in operands]
    values = [one for one in operands if isinstance(one, Value)]
    operation = _function(node)
    if len(values) == 2:
        both = _of_one_stream(operation, *values)
        return unknown(builder, where, name, values[0]) if both is None else both
    (value,) = values
    constants = [one for one in operands if not isinstance(one, Value)]
    if not all(_is_per_channel(one, value) for one in constants):
        return unknown(builder, where, name, value)
    first = isinstance(operands[0], Value)
    negative = any(bool((torch.as_tensor(one) < 0).any()) for one in constants)
    falls = name == "neg" or (negative and name in ("mul", "multiply", "truediv", "div"))
    falls = falls or (name == "sub" and not first)
    bends = name in ("truediv", "div") and not first
    function = partial(_with_constants, operation, tuple(operands), value)
    return after(builder, where, function, value, falls=falls, bends=bends)


def _as_number(operand: Any) -> Any:
    """A tensor of one number all over as that number."""
    if not isinstance(operand, Tensor) or not bool((operand == operand.flatten()[0]).all()):
        return operand
    return operand.flatten()[0]


def _with_constants(
    operation: Callable[..., Tensor], operands: Sequence[Any], value: Value, x: Tensor
) -> Tensor:
    return operation(*(x if one is value else one for one in operands))


def _of_one_stream(operation: Callable[..., Tensor], left: Value, right: Value) -> Value | None:
    """Two functions of the same integers as one, as in ``x * sigmoid(x)``."""
    waits = left.moves or right.moves or left.parts or right.parts
    whole = any(isinstance(one, Finish) for one in (*left.functions, *right.functions))
    if left.stream is None or left.stream is not right.stream or waits or whole:
        return None

    def both(x: Tensor) -> Tensor:
        results = []
        for functions in (left.functions, right.functions):
            y = x
            for function in functions:
                y = function(y)
            results.append(y)
        return operation(*results)

    return replace(left, functions=(both,), bends=True)


def _is_per_channel(constant: Any, value: Value) -> bool:
    if not isinstance(constant, Tensor):
        return isinstance(constant, (int, float))
    if constant.numel() == 1:
        return True
    sizes = (*(1,) * 4, *constant.shape)[1 - value.rank :]
    return sizes == (value.shape[0], *(1,) * (value.rank - 2))
