"""What pools and upsampling become."""

from dataclasses import replace
from typing import Any

import torch
from torch import nn

from brevitas_multiquant.export.finn.integer_graph import Convolution, PositionSum
from brevitas_multiquant.export.finn.lower.builder import Builder, sum_range
from brevitas_multiquant.export.finn.lower.geometry import Pair, Window, is_global, pair
from brevitas_multiquant.export.finn.lower.moves import (
    Enlarging,
    LowestPadding,
    Pooling,
    Sampling,
    ZeroPadding,
)
from brevitas_multiquant.export.finn.lower.registry import register_rule
from brevitas_multiquant.export.finn.lower.values import MeanOfSum, Value


@register_rule(nn.MaxPool2d)
def _max_pool(builder: Builder, where: str, pool: Any, value: Value) -> Value:
    """Waits: the largest code is the code of the largest value."""
    window = Window.of(pool)
    if value.flat:
        return builder.problem(where, "max pool of a vector", value)
    if window.dilation != (1, 1):
        return builder.problem(where, "max pool with dilation: use one without", value)
    if window.samples:
        return _sampled(value, window.stride)
    if any(k < s for k, s in zip(window.kernel, window.stride, strict=True)):
        advice = "max pool with a stride larger than its kernel: use an equal kernel"
        return builder.problem(where, advice, value)
    if pool.ceil_mode and not window.rounds_alike(value.shape):
        after = window.ceil_padding(value.shape)
        padded = value.moved(LowestPadding(window.padding, after))
        return padded.moved(Pooling(replace(window, padding=(0, 0))))
    return value.moved(Pooling(window))


def _sampled(value: Value, stride: Pair) -> Value:
    return value if stride == (1, 1) else value.moved(Sampling((0, 0), stride))


@register_rule(nn.AdaptiveMaxPool2d)
def _global_max_pool(builder: Builder, where: str, pool: Any, value: Value) -> Value:
    kernel = _even_window(pool.output_size, value)
    if kernel is None:
        advice = "adaptive max pool to windows of several sizes: use nn.MaxPool2d"
        return builder.problem(where, advice, value)
    return _max_pool(builder, where, nn.MaxPool2d(kernel), value)


@register_rule(nn.AvgPool2d)
def _average_of_windows(builder: Builder, where: str, pool: Any, value: Value) -> Value:
    window = Window.of(pool)
    problem = None
    if pool.divisor_override:
        problem = "average pool with divisor_override: leave it out"
    elif any(window.padding) and not pool.count_include_pad:
        problem = "average pool with padding that does not count: leave count_include_pad=True"
    elif pool.ceil_mode and not window.rounds_alike(value.shape):
        problem = "average pool with ceil_mode that reaches over the edge: leave it out"
    if problem:
        shape = (value.shape[0], *window.positions(value.shape))
        return builder.problem(where, problem, replace(value, shape=shape))
    if window.samples:
        return _sampled(value, window.stride)
    if window.covers(value.shape):
        return _average(builder, where, nn.AdaptiveAvgPool2d(1), value)
    return window_sums(builder, where, nn.AvgPool2d(window.kernel), window, value)


def window_sums(
    builder: Builder, where: str, pool: nn.Module, window: Window, value: Value
) -> Value:
    """A depthwise convolution of ones, and torch's division as a function of the sums.

    Args:
        builder: the network so far.
        where: module path.
        pool: what torch makes of a window.
        window: how it moves.
        value: what is averaged.
    """
    shape = (value.shape[0], *window.positions(value.shape))
    value = builder.on_a_grid(where, value)
    if value.stream is None:
        return replace(value, shape=shape)
    weight = torch.ones(shape[0], 1, *window.kernel)
    output = builder.stream(shape, *sum_range(weight, value.stream))
    layer = Convolution(
        *(where, (value.stream,), output, weight, 2, window.stride, window.padding),
        groups=shape[0],
    )
    summed = replace(value, stream=builder.add(layer), shape=shape)
    return summed.then(MeanOfSum(pool, window.kernel))


@register_rule(nn.AdaptiveAvgPool2d)
def _average(builder: Builder, where: str, pool: Any, value: Value) -> Value:
    """A sum of integers, and torch's division as a function of it."""
    channels, height, width = value.shape
    if not is_global(pool.output_size):
        return _adaptive_average(builder, where, pool, value)
    if height == width == 1:
        return value
    value = builder.on_a_grid(where, value)
    shape = (channels, 1, 1)
    if value.stream is None:
        return replace(value, shape=shape)
    count = height * width
    output = builder.stream(shape, count * value.stream.lowest, count * value.stream.highest)
    summed = builder.add(PositionSum(where, (value.stream,), output))
    return replace(value, stream=summed, shape=shape).then(MeanOfSum(pool, (height, width)))


def _adaptive_average(builder: Builder, where: str, pool: Any, value: Value) -> Value:
    """To several positions: windows of one size, or every position several times."""
    kernel, factors = _even_window(pool.output_size, value), _even_copies(pool.output_size, value)
    if kernel == (1, 1):
        return value
    if kernel is not None:
        return _average_of_windows(builder, where, nn.AvgPool2d(kernel), value)
    if factors is not None:
        return value.moved(Enlarging(factors))
    rows, columns = pair(pool.output_size)
    advice = (
        f"average pool of {value.shape[1]} x {value.shape[2]} to {rows} x {columns} positions, "
        "windows of several sizes: use images of a size that divides evenly, or a global pool"
    )
    return builder.problem(where, advice, replace(value, shape=(value.shape[0], rows, columns)))


def _even_window(sizes: Any, value: Value) -> Pair | None:
    """The window of an adaptive pool, if all have one size."""
    (rows, columns), (_, height, width) = _sizes(sizes, value), value.shape
    if height % rows or width % columns:
        return None
    return height // rows, width // columns


def _even_copies(sizes: Any, value: Value) -> Pair | None:
    """How many times an adaptive pool repeats every position, if it does only that."""
    (rows, columns), (_, height, width) = _sizes(sizes, value), value.shape
    if rows % height or columns % width:
        return None
    return rows // height, columns // width


def _sizes(sizes: Any, value: Value) -> Pair:
    given = (sizes, sizes) if sizes is None or isinstance(sizes, int) else sizes
    own = value.shape[1:]
    rows, columns = (n if size is None else size for size, n in zip(given, own, strict=True))
    return rows, columns


@register_rule(nn.Upsample)
def _upsample(builder: Builder, where: str, upsample: Any, value: Value) -> Value:
    _, height, width = value.shape
    factor, sizes = upsample.scale_factor, upsample.size
    if sizes is None:
        factor = factor if isinstance(factor, tuple) else (factor, factor)
        sizes = int(height * factor[0]), int(width * factor[1])
    copies = _even_copies(pair(sizes), value)
    if upsample.mode in ("nearest", "nearest-exact") and copies is not None:
        return value.moved(Enlarging(copies))
    steps = _even_window(pair(sizes), value)
    if upsample.mode == "nearest" and steps is not None:
        return _sampled(value, steps)
    advice = (
        f"upsampling of {height} x {width} to {pair(sizes)} by {upsample.mode}: use "
        "mode='nearest' with a whole factor"
    )
    return builder.problem(where, advice, replace(value, shape=(value.shape[0], *pair(sizes))))


@register_rule(nn.ConstantPad1d, nn.ConstantPad2d)
def _zero_pad(builder: Builder, where: str, pad: Any, value: Value) -> Value:
    left, right, top, bottom = (*pad.padding, 0, 0)[:4]
    if pad.value:
        return builder.problem(where, f"padding with {pad.value}: use zeros", value)
    if min(pad.padding) < 0:
        return builder.problem(where, "padding below zero, which crops: leave it out", value)
    return value.moved(ZeroPadding((top, left), (bottom, right)))


LINE_OF_MAP = "works along the positions of a whole map: keep it a map (N, C, H, W)"


def _one(value: Any) -> Any:
    return value[0] if isinstance(value, (tuple, list)) else value


@register_rule(nn.MaxPool1d)
def _max_pool_of_lines(builder: Builder, where: str, pool: Any, value: Value) -> Value:
    if value.shape[1] > 1:
        return builder.problem(where, LINE_OF_MAP, value)
    kernel, stride, padding = map(_one, (pool.kernel_size, pool.stride, pool.padding))
    moves = ((1, kernel), (1, stride), (0, padding), (1, _one(pool.dilation)))
    return _max_pool(builder, where, nn.MaxPool2d(*moves, ceil_mode=pool.ceil_mode), value)


@register_rule(nn.AvgPool1d)
def _average_of_lines(builder: Builder, where: str, pool: Any, value: Value) -> Value:
    if value.shape[1] > 1:
        return builder.problem(where, LINE_OF_MAP, value)
    kernel, stride, padding = map(_one, (pool.kernel_size, pool.stride, pool.padding))
    moves: Any = ((1, kernel), (1, stride), (0, padding), pool.ceil_mode, pool.count_include_pad)
    return _average_of_windows(builder, where, nn.AvgPool2d(*moves), value)


@register_rule(nn.AdaptiveAvgPool1d)
def _average_of_line(builder: Builder, where: str, pool: Any, value: Value) -> Value:
    if value.shape[1] > 1 and _one(pool.output_size) != 1:
        return builder.problem(where, LINE_OF_MAP, value)
    flat = nn.AdaptiveAvgPool2d((1, _one(pool.output_size)))
    return _average(builder, where, flat, value)


@register_rule(nn.AdaptiveMaxPool1d)
def _global_max_pool_of_line(builder: Builder, where: str, pool: Any, value: Value) -> Value:
    if value.shape[1] > 1 and _one(pool.output_size) != 1:
        return builder.problem(where, LINE_OF_MAP, value)
    flat = nn.AdaptiveMaxPool2d((1, _one(pool.output_size)))
    return _global_max_pool(builder, where, flat, value)
