"""What each axis of each tensor stands for: image, channels, positions.

Followed from the image through the graph, as far as shapes tell. A layer of a convolutional network
adds up channels; one that adds up positions is a mixer, however it is spelt. An axis that holds one
entry alone, such as the maximum over channels, has no meaning: several of them side by side are
maps, not positions.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from brevitas_multiquant.quant.layers import CONVOLUTIONS, TRANSPOSED
from brevitas_multiquant.rewrite.graph.trace import Trace, gives_tensors, is_tensor, shape_of

BATCH, CHANNEL, POSITION = "batch", "channel", "position"
Axes = tuple[frozenset[str], ...]

_UNKNOWN: frozenset[str] = frozenset()
_IMAGE: Axes = tuple(frozenset({name}) for name in (BATCH, CHANNEL, *3 * (POSITION,)))
_CONVOLUTIONS = (*CONVOLUTIONS, *TRANSPOSED)
_PERMUTATIONS = {torch.permute, "permute", torch.transpose, "transpose", "swapaxes", "movedim"}
_REDUCTIONS = {"mean", "sum", "amax", "amin", "max", "min", "std", "var", "norm"}
_SOFTMAXES = {torch.softmax, F.softmax, "softmax"}


def axes_of(traced: Trace) -> dict[fx.Node, Axes]:
    """Meaning of every axis of every tensor; an empty set where it is not known."""
    axes: dict[fx.Node, Axes] = {}
    for node in traced.graph.nodes:
        sources = [source for source in node.all_input_nodes if source in axes]
        if is_tensor(node):
            shape = shape_of(node)
            found = _axes_of_tensor(traced, node, sources, axes)
            axes[node] = tuple(map(_without_meaning_if_one, found, shape))
        elif gives_tensors(node) and sources:
            axes[node] = _axes_of_pieces(node, axes[sources[0]])
    return axes


def _axes_of_tensor(
    traced: Trace, node: fx.Node, sources: list[fx.Node], axes: dict[fx.Node, Axes]
) -> Axes:
    rank = len(shape_of(node))
    if node.op == "placeholder":
        return _IMAGE[:rank]
    if not sources:
        return (_UNKNOWN,) * rank
    if all(is_tensor(source) for source in sources):
        return _follow(traced, node, sources, axes)
    pieces = axes[sources[0]]
    return pieces if len(pieces) == rank else (_UNKNOWN,) * rank


def _without_meaning_if_one(axis: frozenset[str], size: int) -> frozenset[str]:
    return _UNKNOWN if size == 1 and BATCH not in axis else axis


def _axes_of_pieces(node: fx.Node, known: Axes) -> Axes:
    """Pieces of a tensor; or its maxima along an axis, with their places."""
    reduced = _reduced_axes(node, known)
    if reduced is None:
        return known
    shape = next(item.shape for item in node.meta["tensor_meta"] if hasattr(item, "shape"))
    return _after_reduction(known, reduced, len(shape))


def _after_reduction(known: Axes, reduced: set[int], rank: int) -> Axes:
    """The axes that are left; those that are kept with one entry have lost their meaning."""
    if rank == len(known):
        return tuple(_UNKNOWN if place in reduced else axis for place, axis in enumerate(known))
    return tuple(axis for place, axis in enumerate(known) if place not in reduced)


def _follow(
    traced: Trace, node: fx.Node, sources: list[fx.Node], axes: dict[fx.Node, Axes]
) -> Axes:
    """The axes of a node from those of the tensors it reads."""
    shape = shape_of(node)
    source = max(sources, key=lambda s: sum(map(bool, axes[s])))  # not a parameter beside it
    before, known = shape_of(source), axes[source]
    layer = traced.module(node)
    if isinstance(layer, _CONVOLUTIONS) and len(before) == len(shape):
        made = frozenset({CHANNEL}) if _adds_up(layer) else known[1]
        return (known[0], made, *known[2:])
    if isinstance(traced.module(node), nn.Linear):
        return (*known[:-1], frozenset({CHANNEL}))
    if _name(node) in _PERMUTATIONS or node.target in _PERMUTATIONS:
        return tuple(known[place] for place in _order(node, len(before)))
    reduced = _reduced_axes(node, before)
    if reduced is not None and len(shape) in (len(before), len(before) - len(reduced)):
        return _after_reduction(known, reduced, len(shape))
    if len(before) == len(shape):
        return _same_rank(before, shape, known)
    return _reshaped(before, shape, known)


def _adds_up(layer: Any) -> bool:
    """Whether a convolution adds up its channels; a depthwise one has a filter for each."""
    return bool(layer.in_channels > layer.groups)


def _name(node: fx.Node) -> str:
    return node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")


def _order(node: fx.Node, rank: int) -> list[int]:
    """Which axis of the input each axis of the output is: found by moving numbered axes."""
    arguments = [a for a in node.args[1:] if not isinstance(a, fx.Node)]
    numbered = torch.empty(tuple(range(1, rank + 1)), device="meta")
    moved = getattr(numbered, _name(node))(*arguments, **node.kwargs)
    return [size - 1 for size in moved.shape]


def _reduced_axes(node: fx.Node, before: Sequence[Any]) -> set[int] | None:
    if _name(node) not in _REDUCTIONS:
        return None
    dims: Any = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
    if isinstance(dims, int):
        dims = (dims,)
    if not isinstance(dims, (tuple, list)) or not all(isinstance(d, int) for d in dims):
        return None
    return {d % len(before) for d in dims}


def _same_rank(before: Sequence[int], shape: Sequence[int], known: Axes) -> Axes:
    """Elementwise, pooled, concatenated, or reshaped without a change of rank."""
    moved = math.prod(before) == math.prod(shape) and tuple(before) != tuple(shape)
    return _reshaped(before, shape, known) if moved else known


def _reshaped(before: Sequence[int], shape: Sequence[int], known: Axes) -> Axes:
    """Axes that are merged keep the meaning of all, axes that are split that of the one."""
    if math.prod(before) != math.prod(shape):
        return (_UNKNOWN,) * len(shape)
    result: list[frozenset[str]] = []
    old = new = 0
    while new < len(shape):
        start_old, start_new = old, new
        left, right = before[old] if old < len(before) else 1, shape[new]
        old, new = old + 1, new + 1
        while left != right:
            if left < right:
                left, old = left * before[old], old + 1
            else:
                right, new = right * shape[new], new + 1
        if new == len(shape):
            old = len(before)
        meaning = frozenset().union(*known[start_old:old])
        result += [meaning] * (new - start_new)
    return tuple(result)


def mixes_positions(traced: Trace, node: fx.Node, axes: dict[fx.Node, Axes]) -> bool:
    """Whether a layer adds up positions, or a softmax weighs them against each other."""
    source = next(iter(node.all_input_nodes), None)
    if source not in axes or not is_tensor(source):
        return False
    read, shape = axes[source], shape_of(source)
    module = traced.module(node)
    if isinstance(module, nn.Linear):
        place = -1
    elif isinstance(module, _CONVOLUTIONS):
        if not _adds_up(module):
            return False
        place = 1 if len(shape) > len(module.kernel_size) + 1 else 0  # an image without a batch
    elif isinstance(module, nn.Softmax) and isinstance(module.dim, int):
        place = module.dim
    elif node.target in _SOFTMAXES:
        dim: Any = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
        place = dim if isinstance(dim, int) else 0
    else:
        return False
    return shape[place] > 1 and read[place] == {POSITION}
