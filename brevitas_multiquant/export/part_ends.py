"""Where the parts of a network end in an exported graph."""

from typing import Any

STEM, MERGE = "stem", "merge"
"""Parts whose outputs are compared; labels of the nodes that give them."""


def ends_of(graph: Any, part: str) -> list[Any]:
    """The nodes of an ONNX graph whose outputs are those of a part of the network, in order.

    Args:
        graph: as torch's exporter wrote it: nodes are called after their modules.
        part: `STEM` or `MERGE`.

    Returns:
        None of them where the part has no node of its own.
    """
    inside = [node for node in graph.node if node.name.startswith(f"/{part}/")]
    ours = {node.name for node in inside}
    read = {name for node in graph.node if node.name not in ours for name in node.input}
    read |= {value.name for value in graph.output}
    return [node for node in inside if node.output[0] in read]


def label_ends(graph: Any) -> None:
    """Note on each of them, but quantizers, which part it ends: the clean-up keeps notes."""
    for part in (STEM, MERGE):
        for index, node in enumerate(ends_of(graph, part)):
            if not node.doc_string:
                node.doc_string = f"{part} {index}" if index else part


def take_ends(labelled: dict[str, str], part: str) -> tuple[str, ...]:
    """The tensors that a part gives, out of those of labelled nodes, which then lack them.

    Example:
        >>> labelled = {"stem": "a", "branches.0.input_quants.x": "b", "stem 1": "c"}
        >>> take_ends(labelled, STEM), labelled
        (('a', 'c'), {'branches.0.input_quants.x': 'b'})
    """
    names = [name for name in labelled if name.partition(" ")[0] == part]
    return tuple(labelled.pop(name) for name in names)
