"""ONNX forms of operations that torch's exporter has none for, or one that is not exact.

The shapes in a file are fixed, so what depends on them alone is computed here, by torch itself, and
written as a constant.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.onnx import symbolic_helper


@contextmanager
def own_forms(opset_version: int) -> Iterator[None]:
    """Inside, torch's exporter writes the operations of this file as this file does.

    Args:
        opset_version: the operator set that is exported to.
    """
    for name, form in _FORMS.items():
        torch.onnx.register_custom_op_symbolic(f"aten::{name}", form, opset_version)
    try:
        yield
    finally:
        for name in _FORMS:
            torch.onnx.unregister_custom_op_symbolic(f"aten::{name}", opset_version)


def _shapes(g: Any, operation: str) -> tuple[list[int], list[int]]:
    """Shapes of an operation's input and output, as they were when it was traced."""
    node = g.original_node
    before, after = next(node.inputs()).type().sizes(), node.output().type().sizes()
    if before is None or after is None:
        symbolic_helper._unimplemented(operation, "a size of its input that torch does not tell")
    return before, after


def _constant(g: Any, value: Tensor) -> Any:
    return g.op("Constant", value_t=value)


def _channel_shuffle(g: Any, x: Any, groups: Any) -> Any:
    before, _ = _shapes(g, "channel_shuffle")
    numbers = torch.arange(before[1]).view(1, -1, 1, 1)
    order = F.channel_shuffle(numbers, symbolic_helper._maybe_get_const(groups, "i"))
    return g.op("Gather", x, _constant(g, order.flatten()), axis_i=1)


def _adaptive_average(g: Any, x: Any, size: Any) -> Any:
    """Equal windows as a pooling layer; others as sums by matrices of 0 and 1, then divided."""
    if symbolic_helper._maybe_get_const(size, "is") == [1, 1]:
        return g.op("GlobalAveragePool", x)
    before, after = _shapes(g, "adaptive_avg_pool2d")
    sizes = list(zip(before[2:], after[2:], strict=True))
    if all(new == 1 for _, new in sizes):
        return g.op("GlobalAveragePool", x)
    if all(old % new == 0 for old, new in sizes):
        kernel = [old // new for old, new in sizes]
        return g.op("AveragePool", x, kernel_shape_i=kernel, strides_i=kernel)
    rows, columns = (_windows(old, new) for old, new in sizes)
    total = g.op("MatMul", g.op("MatMul", _constant(g, rows), x), _constant(g, columns.t()))
    return g.op("Div", total, _constant(g, rows.sum(1, keepdim=True) * columns.sum(1)))


def _windows(old: int, new: int) -> Tensor:
    """(new, old): 1 where torch averages the old position into the new one."""
    return (F.adaptive_avg_pool1d(torch.eye(old), new) > 0).float().t().contiguous()


def _nearest(mode: str, g: Any, x: Any, _size: Any, *scales: Any) -> Any:
    """Whole factors as a resize, which dataflow compilers know; others by torch's own indices.

    Executors find the position to read by a division, whose rounding may give the one beside.
    """
    before, after = _shapes(g, "interpolate")
    factors = symbolic_helper._maybe_get_const(scales[0], "fs") if scales else None
    read = [
        _positions(mode, old, new, factors[axis] if isinstance(factors, list) else None)
        for axis, (old, new) in enumerate(zip(before[2:], after[2:], strict=True))
    ]
    times = [len(positions) // old for positions, old in zip(read, before[2:], strict=True)]
    if all(
        torch.equal(positions, torch.arange(old).repeat_interleave(factor))
        for positions, old, factor in zip(read, before[2:], times, strict=True)
    ):
        return _resize(g, x, times)
    for axis, positions in enumerate(read):
        x = g.op("Gather", x, _constant(g, positions), axis_i=axis + 2)
    return x


def _positions(mode: str, old: int, new: int, factor: float | None) -> Tensor:
    """(new,): which of the old positions torch reads for each new one."""
    numbers = torch.arange(old, dtype=torch.float32).view(1, 1, old, 1)
    read = torch.ops.aten.upsample_nearest2d
    if mode == "nearest-exact":
        read = torch.ops.aten._upsample_nearest_exact2d
    # a graph holds the author's factor in fp32: the shortest decimal is what was written
    written = None if factor is None else float(str(np.float32(factor)))
    found: Tensor = read(numbers, [new, 1], written, None)
    return found.flatten().long()


def _resize(g: Any, x: Any, times: list[int]) -> Any:
    """Each row and column repeated."""
    no_region, factors = torch.zeros(0), torch.tensor([1.0, 1.0, *map(float, times)])
    return g.op(
        "Resize",
        x,
        _constant(g, no_region),
        _constant(g, factors),
        coordinate_transformation_mode_s="asymmetric",
        mode_s="nearest",
        nearest_mode_s="floor",
    )


def _rms_norm(g: Any, x: Any, shape: Any, weight: Any, eps: Any) -> Any:
    before, _ = _shapes(g, "rms_norm")
    count = len(symbolic_helper._maybe_get_const(shape, "is"))
    axes = list(range(len(before) - count, len(before)))
    added = symbolic_helper._maybe_get_const(eps, "f")
    if not isinstance(added, float):
        added = torch.finfo(torch.float32).eps
    squares = g.op("ReduceMean", g.op("Mul", x, x), axes_i=axes)
    root = g.op("Sqrt", g.op("Add", squares, _constant(g, torch.tensor(added))))
    y = g.op("Div", x, root)
    return y if symbolic_helper._is_none(weight) else g.op("Mul", y, weight)


def _max_unpool(g: Any, x: Any, places: Any, *_: Any) -> Any:
    """Zeros, with each value where its maximum was: places count through one map, as torch's do."""
    before, after = _shapes(g, "max_unpool")
    channels, count = before[:2], math.prod(after[2:])
    flat = _constant(g, torch.tensor([*channels, -1]))
    zeros = _constant(g, torch.zeros(*channels, count))
    values, flat_places = g.op("Reshape", x, flat), g.op("Reshape", places, flat)
    filled = g.op("ScatterElements", zeros, flat_places, values, axis_i=2)
    return g.op("Reshape", filled, _constant(g, torch.tensor(after)))


_FORMS: dict[str, Callable[..., Any]] = {
    "channel_shuffle": _channel_shuffle,
    "adaptive_avg_pool2d": _adaptive_average,
    **{f"upsample_nearest{n}d": partial(_nearest, "nearest") for n in (1, 2, 3)},
    **{f"_upsample_nearest_exact{n}d": partial(_nearest, "nearest-exact") for n in (1, 2, 3)},
    **{f"max_unpool{n}d": _max_unpool for n in (2, 3)},
    "rms_norm": _rms_norm,
}
