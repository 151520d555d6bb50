"""Channel sets: which tensors of a body must be narrowed together.

Two tensors are in one set if an operation that is not a dense layer reads one and gives the other:
they are added, concatenated, multiplied, normalised, convolved group by group. A dense layer is
where widths are free to differ. The set of the tensor that the head reads keeps its width.
"""

from dataclasses import dataclass
from typing import Any

from torch import fx, nn

from brevitas_multiquant.quant.layers import WEIGHTED
from brevitas_multiquant.rewrite.graph.kinds import has_parameters
from brevitas_multiquant.rewrite.graph.trace import gives_tensors, is_tensor, shape_of


@dataclass(frozen=True)
class ChannelSets:
    """The channel sets of a body.

    Args:
        of: name of a node -> number of its set; nodes that give no tensor are in none.
        fixed: the set that keeps its width.
    """

    of: dict[str, int]
    fixed: int

    def shrinks(self, node: fx.Node) -> bool:
        """Whether the node's tensor is in a set whose width may change."""
        return self.of.get(node.name, self.fixed) != self.fixed


def module_of(body: fx.GraphModule, node: fx.Node) -> Any:
    """The module that a node calls, or None."""
    return body.get_submodule(str(node.target)) if node.op == "call_module" else None


def is_dense(module: nn.Module | None) -> bool:
    """Whether a layer mixes all channels that it reads."""
    return isinstance(module, WEIGHTED) and getattr(module, "groups", 1) == 1


def channel_dim(layer: nn.Module, node: fx.Node) -> int:
    """The dimension that a layer contracts in what it reads, and makes anew in what it gives."""
    return len(shape_of(node)) - 1 if isinstance(layer, nn.Linear) else 1


def channel_sets(body: fx.GraphModule) -> ChannelSets:
    """The channel sets of a traced body.

    Args:
        body: traced, with shapes in the nodes' ``meta``.
    """
    parent: dict[fx.Node, fx.Node] = {}

    def root(node: fx.Node) -> fx.Node:
        while parent.setdefault(node, node) is not node:
            parent[node] = parent[parent[node]]
            node = parent[node]
        return node

    first_call: dict[str, fx.Node] = {}
    for node in body.graph.nodes:
        sources = [source for source in node.all_input_nodes if _has_tensors(source)]
        if has_parameters(module_of(body, node)) and sources:  # one that runs twice has one width
            first = first_call.setdefault(str(node.target), node)
            parent[root(node)] = root(first)
            parent[root(sources[0])] = root(first.all_input_nodes[0])
        if node.op == "output" or is_dense(module_of(body, node)) or not _has_tensors(node):
            continue
        for source in sources:
            parent[root(source)] = root(node)
    given = body.graph.output_node().all_input_nodes
    for node in given:  # what the head reads keeps its width
        parent[root(node)] = root(given[0])
    numbers: dict[fx.Node, int] = {}
    of = {
        node.name: numbers.setdefault(root(node), len(numbers))
        for node in body.graph.nodes
        if _has_tensors(node)
    }
    return ChannelSets(of, of[given[0].name])


def _has_tensors(node: fx.Node) -> bool:
    return is_tensor(node) or gives_tensors(node)
