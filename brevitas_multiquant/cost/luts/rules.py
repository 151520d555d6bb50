"""One rule for each kind of layer."""

from collections.abc import Callable, Iterable
from typing import Any

from brevitas_multiquant.cost.luts import products, streams
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
    Thresholds,
    Upsampling,
    WidthConverter,
    Window,
)
from brevitas_multiquant.cost.luts.products import DspBlock
from brevitas_multiquant.cost.luts.resources import Resources
from brevitas_multiquant.errors import HardwareError

PRODUCT_RULES: dict[type[Node], Callable[[Any, DspBlock], Resources]] = {
    MatrixProduct: products.matrix_product,
    DepthwiseProduct: products.depthwise_product,
}
"""Kinds whose cost depends on the DSPs of the board."""

RULES: dict[type[Node], Callable[[Any], Resources]] = {
    Thresholds: streams.thresholds,
    Window: streams.window,
    WidthConverter: streams.width_converter,
    **dict.fromkeys((Addition, Duplication, Padding, Pool, PositionSum), streams.nothing),
    **dict.fromkeys((Concatenation, Upsampling), streams.nothing),
}
"""All other kinds."""


def resources(node: Node, dsp: DspBlock = "DSP48E2") -> Resources:
    """What FINN estimates for a layer.

    Args:
        node: the layer, with its parallelism.
        dsp: the board's kind of DSP.

    Raises:
        HardwareError: a kind of layer without a rule, or an unknown kind of DSP.

    Example:
        >>> resources(Thresholds(channels=16, positions=1024, threshold_bits=14, output_bits=3))
        Resources(luts=42, bram18=0, dsp=0, uram=0)
    """
    if dsp not in products.DATAPATHS:
        raise HardwareError(f"dsp: expected one of {list(products.DATAPATHS)}, got {dsp!r}")
    if type(node) in PRODUCT_RULES:
        return PRODUCT_RULES[type(node)](node, dsp)
    if type(node) not in RULES:
        known = sorted(kind.__name__ for kind in (*PRODUCT_RULES, *RULES))
        raise HardwareError(f"resources: expected one of {known}, got {type(node).__name__}")
    return RULES[type(node)](node)


def total(nodes: Iterable[Node], dsp: DspBlock = "DSP48E2") -> Resources:
    """What FINN estimates for all layers together.

    Args:
        nodes: the layers.
        dsp: the board's kind of DSP.

    Example:
        >>> total([Window(3, (34, 34), (3, 3), 8), Addition(16, 1024)]).luts
        348
    """
    return Resources.sum(resources(node, dsp) for node in nodes)
