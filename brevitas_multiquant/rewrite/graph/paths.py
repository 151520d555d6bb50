"""Paths through a traced graph: ancestors, what lies between two nodes, separators."""

from collections.abc import Collection, Iterable

from torch import fx

from brevitas_multiquant.rewrite.graph.trace import Trace, gives_tensors, is_tensor


def ancestors(nodes: Iterable[fx.Node], stops: Collection[fx.Node] = ()) -> set[fx.Node]:
    """Everything that nodes are computed from, themselves included, not looking past ``stops``."""
    seen: set[fx.Node] = set()
    waiting = list(nodes)
    while waiting:
        current = waiting.pop()
        if current not in seen:
            seen.add(current)
            waiting += [] if current in stops else current.all_input_nodes
    return seen


def descendants(nodes: Iterable[fx.Node], within: Collection[fx.Node]) -> set[fx.Node]:
    """Everything in ``within`` that is computed from nodes, themselves included."""
    seen: set[fx.Node] = set()
    waiting = list(nodes)
    while waiting:
        current = waiting.pop()
        if current not in seen:
            seen.add(current)
            waiting += [user for user in current.users if user in within]
    return seen


def nodes_between(starts: Collection[fx.Node], ends: Collection[fx.Node]) -> list[fx.Node]:
    """Nodes that ``ends`` are computed from, behind ``starts``, in execution order."""
    wanted = ancestors(ends, stops=starts) - set(starts)
    (first, *_) = starts
    return [node for node in first.graph.nodes if node in wanted]


def image_path(traced: Trace) -> list[fx.Node]:
    """Nodes on a path of tensors from the image to the output, in execution order."""
    nodes = list(traced.graph.nodes)
    fed: set[fx.Node] = {node for node in nodes if node.op == "placeholder"}
    for node in nodes:
        tensors = is_tensor(node) or node.op == "output" or gives_tensors(node)
        if tensors and any(source in fed for source in node.all_input_nodes):
            fed.add(node)
    needed = ancestors(nodes[-1:])
    return [node for node in nodes if node in fed and node in needed]


def separators(path: list[fx.Node]) -> list[fx.Node]:
    """Nodes of an image path that every path from image to outputs passes, in order."""
    place = {node: index for index, node in enumerate(path)}
    found, reach = [], 0
    for node in path:
        if reach <= place[node] and is_tensor(node):
            found.append(node)
        reach = max([reach, *(place[user] for user in node.users if user in place)])
    return found
