"""Outputs that are pieces of a tensor: a forward may return ``x.chunk(2, 1)`` as it is."""

import operator
from typing import Any

from torch import fx

from brevitas_multiquant.core.output_structure import A_TENSOR, OutputStructure


def taken_apart(
    outputs: tuple[fx.Node, ...], structure: OutputStructure
) -> tuple[tuple[fx.Node, ...], OutputStructure]:
    """A node for each tensor, where an operation gives several side by side.

    Args:
        outputs: what a graph gives, with shapes noted; nodes are added to it.
        structure: what the forward returns of them.

    Returns:
        The nodes of the tensors, and the structure that holds each.
    """
    pieces = [_pieces_of(node) for node in outputs]
    if not any(pieces):
        return outputs, structure
    marks = [None if own is None else type(own)(A_TENSOR for _ in own) for own in pieces]
    given = zip(outputs, pieces, strict=True)
    tensors = tuple(node for one, own in given for node in ([one] if own is None else own))
    return tensors, structure.with_pieces(marks)


def _pieces_of(node: fx.Node) -> Any:
    """The tensors of a sequence of tensors alone, as nodes; None of what is something else."""
    if not isinstance(node, fx.Node) or node.op not in ("call_function", "call_method"):
        return None
    meta = node.meta.get("tensor_meta")
    if not isinstance(meta, (list, tuple)) or hasattr(meta, "shape"):
        return None
    if not all(hasattr(item, "shape") for item in meta):
        return None
    pieces = []
    with node.graph.inserting_before(node.graph.output_node()):
        for index, item in enumerate(meta):
            piece = node.graph.call_function(operator.getitem, (node, index))
            piece.meta["tensor_meta"] = item
            pieces.append(piece)
    return type(meta)(pieces)
