"""What a project's README says of the types of its weights."""

from collections import Counter

from brevitas_multiquant.core.grids import weight_datatype
from brevitas_multiquant.export.finn.integer_graph import Convolution, IntegerGraph


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
    return "\n## Weights\n\n" + "\n".join(lines) + "\n"
