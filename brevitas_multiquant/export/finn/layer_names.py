"""What FINN calls the layers of hardware that it makes of an integer network, without FINN."""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from brevitas_multiquant.cost import luts
from brevitas_multiquant.cost.luts import Node
from brevitas_multiquant.cost.luts.products import (
    DspBlock,
    depthwise_in_dsps,
    multiplies_in_dsps,
)
from brevitas_multiquant.export.finn.hardware import named_layers
from brevitas_multiquant.export.finn.integer_graph import (
    Addition,
    IntegerGraph,
    Layer,
    Product,
    Subtraction,
)

_ELEMENTWISE: dict[type[Layer], str] = {Addition: "Add", Subtraction: "Sub", Product: "Mul"}
_KINDS: dict[type[Node], Callable[[Any, Any, DspBlock], str]] = {
    luts.Thresholds: lambda *_: "Thresholding_rtl",
    luts.Window: lambda *_: "ConvolutionInputGenerator_rtl",
    luts.Padding: lambda *_: "FMPadding_rtl",
    luts.Pool: lambda *_: "Pool_hls",
    luts.PositionSum: lambda *_: "GlobalAccPool_hls",
    luts.Duplication: lambda *_: "DuplicateStreams_hls",
    luts.Concatenation: lambda *_: "StreamingConcat_hls",
    luts.Upsampling: lambda *_: "UpsampleNearestNeighbour_hls",
    luts.Addition: lambda _, layer, __: f"Elementwise{_ELEMENTWISE[type(layer)]}_hls",
    luts.MatrixProduct: lambda node, _, dsp: f"MVAU_{_made_in(multiplies_in_dsps(node, dsp))}",
    luts.DepthwiseProduct: lambda node, _, dsp: f"VVAU_{_made_in(depthwise_in_dsps(node, dsp))}",
}


def _made_in(dsps: bool) -> str:
    return "rtl" if dsps else "hls"


def layer_names(graph: IntegerGraph, layers: Sequence[Node], dsp: DspBlock) -> list[str]:
    """The name of each layer: what it is, what it is written in, and a number of its kind.

    FINN counts in the order of its graph. That is sorted when copies of streams are put in: by how
    many layers a layer is from the image, and those of one distance as they were.

    Args:
        graph: of `brevitas_multiquant.export.finn.lower.lower`.
        layers: of this network, in the order of `named_layers`.
        dsp: the board's kind of DSP.
    """
    streams = [stream for stream, _ in named_layers(graph)]
    made_by = {layer.output.name: layer for layer in graph.layers}
    kinds = [
        _KINDS[type(node)](node, made_by.get(stream), dsp)
        for stream, node in zip(streams, layers, strict=True)
    ]
    distances, counts = _distances(streams, made_by), Counter[str]()
    names = [""] * len(kinds)
    for index in sorted(range(len(kinds)), key=distances.__getitem__):
        names[index] = f"{kinds[index]}_{counts[kinds[index]]}"
        counts[kinds[index]] += 1
    return names


def _distances(streams: Sequence[str], made_by: dict[str, Layer]) -> list[int]:
    """Layers from the image to each layer, by the longest way."""
    last: dict[str, int] = {}
    found = []
    for stream in streams:
        before = [stream] if stream in last else _inputs(made_by.get(stream))
        last[stream] = 1 + max((last.get(one, 0) for one in before), default=0)
        found.append(last[stream])
    return found


def _inputs(layer: Layer | None) -> list[str]:
    return [] if layer is None else [stream.name for stream in layer.inputs]
