"""What a project's README says of the types of its weights."""

from collections import Counter

from brevitas_multiquant.core.exact_sums import FP32_INTEGERS
from brevitas_multiquant.core.grids import weight_datatype
from brevitas_multiquant.export.finn.integer_graph import Convolution, IntegerGraph, Stream


def weight_section(graph: IntegerGraph) -> str:
    """How many layers have weights of which type, and by name those that hardware needs wider.

    Args:
        graph: the integer network.
    """
    layers = [layer for layer in graph.layers if isinstance(layer, Convolution)]
    counts = Counter(layer.weight_datatype for layer in layers)
    lines = [", ".join(f"{kind} in {count} layer(s)" for kind, count in sorted(counts.items()))]
    lines += [
        f"- `{layer.where}`: {layer.weight_datatype} instead of "
        f"{weight_datatype(*layer.weight_range)}: the norm behind it has negative scales in the "
        f"channels {layer.widened}, whose weights are negated"
        for layer in layers
        if layer.widened
    ]
    lines += [
        f"- `{layer.where}`: {layer.grouped} groups as a dense convolution with zeros between, "
        f"for {layer.grouped} times the multiplications and weights"
        for layer in layers
        if layer.grouped > 1
    ]
    lines += [
        f"- `{layer.where}`: sums of up to {_largest(layer.output)}; above {FP32_INTEGERS} fp32, "
        "and so torch, rounds, in an order of its own; hardware adds exactly. Codes of images "
        "whose sums get there can differ; those of the sample images do not"
        for layer in layers
        if _largest(layer.output) > FP32_INTEGERS
    ]
    return "\n## Weights\n\n" + "\n".join(lines) + "\n"


def _largest(stream: Stream) -> int:
    """The largest magnitude that can occur."""
    return max(-stream.lowest, stream.highest)
