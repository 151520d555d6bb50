"""Clock cycles that a layer takes for one image."""

from collections.abc import Callable
from typing import Any

from brevitas_multiquant.cost.luts.nodes import (
    Addition,
    Concatenation,
    DepthwiseProduct,
    Duplication,
    MatrixProduct,
    Node,
    Padding,
    Pool,
    PositionSum,
    Streamed,
    Thresholds,
    Upsampling,
    Window,
)
from brevitas_multiquant.errors import HardwareError


def cycles(node: Node) -> int:
    """Cycles of one image, as FINN's ``get_exp_cycles`` of that kind of layer counts them.

    Args:
        node: the layer, with its parallelism.

    Raises:
        HardwareError: a kind of layer that FINN gives no cycles.

    Example:
        >>> cycles(MatrixProduct(144, 16, 1024, 3, 3, 12, simd=12))
        196608
    """
    if type(node) not in _CYCLES:
        known = sorted(kind.__name__ for kind in _CYCLES)
        raise HardwareError(f"cycles: expected one of {known}, got {type(node).__name__}")
    return _CYCLES[type(node)](node)


def _product(node: MatrixProduct | DepthwiseProduct) -> int:
    return node.weight_words * node.positions


def _streamed(node: Streamed | Thresholds) -> int:
    return node.channels // node.pe * node.positions


def _position_sum(node: PositionSum) -> int:
    return node.channels // node.pe * (node.positions + 1)


def _pool(node: Pool) -> int:
    return node.channels * node.kernel[0] * node.kernel[1] // node.pe * node.positions


def _window(node: Window) -> int:
    folds = node.channels // node.simd
    if node.whole_windows:
        return node.size[0] * node.size[1] * folds + 2
    return _line(node, folds) if 1 in node.size else _image(node, folds)


def _image(node: Window, folds: int) -> int:
    """Fill the buffer, then for each row of outputs write windows or read lines, the slower."""
    height, width = node.output_size
    (down, right), points = node.stride, node.kernel[0] * node.kernel[1]
    fill = (node.extent[0] - 1) * node.size[1] + node.extent[1]
    row = max(width * points, right * node.size[1]) * folds
    stalls = 0
    if node.depthwise:
        row += width * (right - 1) * (folds - 1)
        stalls = (down - 1) * node.size[1] * folds
    return fill * folds + height * row + stalls


def _line(node: Window, folds: int) -> int:
    """The same for images of one row or column; depthwise windows come again for each fold."""
    along = 0 if node.size[1] == 1 else 1
    kernel, stride, outputs = node.kernel[along], node.stride[along], node.output_size[along]
    given = outputs * kernel * folds
    if not node.depthwise:
        return given + 2
    taken = node.size[along] * folds + folds * (kernel - 1) * (stride - 1)
    return max(given + (folds - 1) * kernel, taken) + 2


_CYCLES: dict[type[Node], Callable[[Any], int]] = {
    MatrixProduct: _product,
    DepthwiseProduct: _product,
    Window: _window,
    Pool: _pool,
    PositionSum: _position_sum,
    **dict.fromkeys((Thresholds, Addition, Duplication, Padding), _streamed),
    **dict.fromkeys((Concatenation, Upsampling), _streamed),
}
