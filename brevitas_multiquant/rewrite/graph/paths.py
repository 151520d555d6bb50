"""Paths through a traced graph: ancestors, what lies between two nodes, separators."""

from torch import fx

from brevitas_multiquant.rewrite.graph.trace import Trace, gives_tensors, is_tensor


def ancestors(node: fx.Node, stop: fx.Node | None = None) -> set[fx.Node]:
    """Everything that ``node`` is computed from, itself included, not looking past ``stop``."""
    seen: set[fx.Node] = set()
    waiting = [node]
    while waiting:
        current = waiting.pop()
        if current not in seen:
            seen.add(current)
            waiting += [] if current is stop else current.all_input_nodes
    return seen


def nodes_between(start: fx.Node, end: fx.Node) -> list[fx.Node]:
    """Nodes that ``end`` is computed from, after ``start``, in execution order."""
    wanted = ancestors(end, stop=start) - {start}
    return [node for node in start.graph.nodes if node in wanted]


def image_path(traced: Trace) -> list[fx.Node]:
    """Nodes on a path of tensors from the image to the output, in execution order."""
    nodes = list(traced.graph.nodes)
    fed: set[fx.Node] = {node for node in nodes if node.op == "placeholder"}
    for node in nodes:
        tensors = is_tensor(node) or node.op == "output" or gives_tensors(node)
        if tensors and any(source in fed for source in node.all_input_nodes):
            fed.add(node)
    needed = ancestors(nodes[-1])
    return [node for node in nodes if node in fed and node in needed]


def separators(path: list[fx.Node]) -> list[fx.Node]:
    """Nodes of an image path that every path from image to output passes, in order."""
    place = {node: index for index, node in enumerate(path)}
    found, reach = [], 0
    for node in path:
        if reach <= place[node] and is_tensor(node):
            found.append(node)
        reach = max([reach, *(place[user] for user in node.users if user in place)])
    return found
