"""Between which quantized layers of a body something stands: what transitional norms go by."""

from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

from torch import fx


class Between(NamedTuple):
    """The sites around a module of a body; None where there is none.

    Args:
        own: which the layer reads whose output the module is given.
        next: which the layer reads that the module's output goes to.
    """

    own: str | None = None
    next: str | None = None


NOWHERE = Between()
"""Where no layer is known: in modules that could not be traced."""


def sites_around(graph: fx.Graph, sites: Mapping[str, str]) -> dict[str, Between]:
    """Every module of a body -> the sites that it stands between.

    Paths go through everything but quantized layers: activations, pools, additions. *Own* is of
    the layer in front of it on such a path, and where several are, as behind an addition, of the
    one that runs last: the other is the shortcut. *Next* is of the layer behind it, and where
    several are, as in front of a residual block, of the one that runs first. A side without a
    layer, at the ends of the body, counts as the other one. A module that is called several times
    stands where it is called first.

    Args:
        graph: of the body; layers are called by the names in ``sites``.
        sites: layer -> the site that it reads.

    Example:
        >>> import torch
        >>> body = torch.nn.Sequential(*(torch.nn.Conv2d(2, 2, 1), torch.nn.BatchNorm2d(2)) * 2)
        >>> body[2], body[3] = torch.nn.Conv2d(2, 2, 1), torch.nn.BatchNorm2d(2)
        >>> found = sites_around(fx.symbolic_trace(body).graph, {"0": "0", "2": "2"})
        >>> found["1"], found["3"]
        (Between(own='0', next='2'), Between(own='2', next='2'))
    """
    place = {node: index for index, node in enumerate(graph.nodes)}
    found: dict[str, Between] = {}
    for node in graph.nodes:
        if node.op != "call_module" or node.target in found:
            continue
        before = _layers(node.all_input_nodes, lambda one: one.all_input_nodes, sites)
        behind = _layers(node.users, lambda one: one.users, sites)
        own = sites[str(max(before, key=place.__getitem__).target)] if before else None
        following = sites[str(min(behind, key=place.__getitem__).target)] if behind else None
        found[str(node.target)] = Between(own or following, following or own)
    return found


def _layers(
    start: Iterable[fx.Node],
    onward: Callable[[fx.Node], Iterable[fx.Node]],
    sites: Mapping[str, str],
) -> list[fx.Node]:
    """The quantized layers that are met first on every path."""
    met: list[fx.Node] = []
    seen: set[fx.Node] = set()
    waiting = list(start)
    while waiting:
        node = waiting.pop()
        if node in seen:
            continue
        seen.add(node)
        if node.op == "call_module" and node.target in sites:
            met.append(node)
        else:
            waiting += onward(node)
    return met
