"""Sizes across a cut: what a part reads of another part's shapes, it reads of its own input.

A forward may read ``b = x.size(0)`` at the top and use it at the end. Stem, branch and head each
see one tensor alone. So every such number is found again in the shape of that tensor: by running
the graph on images of other batches and sizes, and comparing. Where it is none of them, it stays
the number of the traced input shape, guarded by `traced_size`.
"""

import operator
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from brevitas_multiquant.nn.traced_size import traced_size
from brevitas_multiquant.rewrite.trace import Trace, gives_tensors, is_tensor, values_at

_OF_ANY_BATCH = ("device", "dtype")


class CannotSettleError(Exception):
    """Why a size cannot be found again; becomes a reason of an `UnsupportedModelError`."""


def settle_sizes(traced: Trace, joints: Sequence[fx.Node]) -> list[str]:
    """Let each part read sizes of its own input alone; changes the graph in place.

    Args:
        traced: the model's graph.
        joints: image, end of the stem, start of the head, logits.

    Returns:
        What a user should know: sizes that hold for the traced input shape alone.

    Raises:
        CannotSettleError: a size that is none of the part's input's, nor a constant.
    """
    crossing = {
        start: sizes
        for start, end in zip(joints, joints[1:], strict=False)
        if (sizes := _crossing_sizes(start, end))
    }
    if not crossing:
        return []
    runs = _Runs.of(traced)
    notes: list[str] = []
    for start, readers in crossing.items():
        for size, reading in readers.items():
            value = _Settled(start, runs, notes).equal_of(size)
            for node in reading:
                _replace_input(node, size, value)
    traced.graph.eliminate_dead_code()
    traced.graph.lint()
    traced.model.recompile()
    return list(dict.fromkeys(notes))


def _is_size(node: fx.Node) -> bool:
    """Whether a node's value is no tensor: a size, a device, and what is computed from them."""
    called = node.op in ("call_function", "call_method")
    return called and not is_tensor(node) and not gives_tensors(node)


def _crossing_sizes(start: fx.Node, end: fx.Node) -> dict[fx.Node, list[fx.Node]]:
    """Sizes that a part reads of tensors outside of it -> the nodes of the part that read them."""
    inside, waiting = set(), [end]
    while waiting:
        node = waiting.pop()
        if node not in inside and node is not start:
            inside.add(node)
            waiting += [source for source in node.all_input_nodes if not _is_size(source)]
    local = inside | {start}
    crossing: dict[fx.Node, list[fx.Node]] = {}
    for node in start.graph.nodes:
        for size in node.all_input_nodes if node in inside else ():
            if _is_size(size) and not _tensors_of(size) <= local:
                crossing.setdefault(size, []).append(node)
    return crossing


def _tensors_of(size: fx.Node) -> set[fx.Node]:
    """The tensors that a size is computed from."""
    sources = size.all_input_nodes
    return {source for source in sources if not _is_size(source)}.union(
        *(_tensors_of(source) for source in sources if _is_size(source))
    )


@dataclass(frozen=True)
class _Runs:
    """What every node gave: for the traced shape, another batch, and other sizes of image.

    Args:
        values: for each run, node -> shape of its tensor, or its value.
    """

    values: list[dict[fx.Node, Any]]

    @classmethod
    def of(cls, traced: Trace) -> "_Runs":
        """Run the graph; other sizes that the model does not take need not be right either."""
        _, channels, height, width = traced.input_shape
        runs = [values_at(traced, traced.input_shape)]
        try:
            runs.append(values_at(traced, (3, channels, height, width)))
        except Exception as error:  # whatever operations raise
            raise CannotSettleError(
                f"its forward does not run on a batch of three as it runs on one image ({error})"
            ) from error
        for size in ((2 * height, 3 * width), (height + 1, width + 3)):
            try:
                runs.append(values_at(traced, (2, channels, *size)))
            except Exception:  # the model is made for other sizes
                continue
        return cls(runs)

    def of_node(self, node: fx.Node) -> list[Any]:
        """What a node gave in each run."""
        return [run[node] for run in self.values]


class _Settled:
    """Finds sizes again in the shape of the tensor that a part reads.

    Args:
        start: that tensor.
        runs: what every node gave.
        notes: where sizes that hold for the traced input shape alone are told.
    """

    def __init__(self, start: fx.Node, runs: _Runs, notes: list[str]) -> None:
        self._start = start
        self._shapes = runs.of_node(start)
        self._runs = runs
        self._notes = notes
        self._size: fx.Node

    def equal_of(self, size: fx.Node) -> Any:
        """What equals a size: numbers, nodes that read the start's shape, or tuples of both."""
        self._size = size
        if size.target is getattr and size.args[1] in _OF_ANY_BATCH:
            return self._call(getattr, (self._start, size.args[1]), None)
        return self._equal(self._runs.of_node(size))

    def _equal(self, values: list[Any]) -> Any:
        first = values[0]
        if all(type(value) is type(first) and value == first for value in values):
            return tuple(first) if isinstance(first, torch.Size) else first
        if all(isinstance(value, (tuple, list)) and len(value) == len(first) for value in values):
            return tuple(self._equal(list(entries)) for entries in zip(*values, strict=True))
        if all(type(value) is int for value in values):
            return self._equal_number(values)
        raise CannotSettleError(
            f"{self._size.name} ({first!r}) is computed from sizes in one part and used in another"
        )

    def _equal_number(self, values: list[int]) -> Any:
        batches = [shape[0] for shape in self._shapes]
        times = values[0] // batches[0]
        if values == [times * batch for batch in batches]:
            batch = self._read(0)
            return batch if times == 1 else self._call(operator.mul, (batch, times), values[0])
        for dim in range(1, len(self._shapes[0])):
            if values == [shape[dim] for shape in self._shapes]:
                return self._read(dim)
        return self._guarded(values)

    def _guarded(self, values: list[int]) -> Any:
        """The number of the traced input shape, where only the size of the image changes it."""
        traced, batched = self._shapes[0][2:], self._shapes[1][2:]
        told = all(tuple(shape[2:]) != tuple(traced) for shape in self._shapes[2:])
        if values[0] != values[1] or traced != batched or not told:
            raise CannotSettleError(
                f"{self._size.name} ({values[0]}) is read from the size of one part's tensors and "
                f"used in another part, where no size of its input ({self._start.name}) equals it"
            )
        self._notes.append(
            f"{self._size.name} ({values[0]}) is read in one part and used in another: it holds "
            "for images of the size of input_shape; others are refused when the network runs"
        )
        return self._call(traced_size, (self._start, tuple(traced), values[0]), values[0])

    def _read(self, dim: int) -> fx.Node:
        return self._call("size", (self._start, dim), self._shapes[0][dim])

    def _call(self, target: Any, args: tuple[Any, ...], value: Any) -> fx.Node:
        graph = self._start.graph
        create = graph.call_method if isinstance(target, str) else graph.call_function
        with graph.inserting_after(_last(self._start.graph, (self._start, *args))):
            node = create(target, args)
        node.meta["tensor_meta"] = value
        return node


def _last(graph: fx.Graph, values: Iterable[Any]) -> fx.Node:
    """The last of some nodes in the order of the graph."""
    wanted = {value for value in values if isinstance(value, fx.Node)}
    return [node for node in graph.nodes if node in wanted][-1]


def _replace_input(node: fx.Node, old: fx.Node, new: Any) -> None:
    def swap(source: fx.Node) -> Any:
        return new if source is old else source

    node.args = fx.node.map_arg(node.args, swap)
    node.kwargs = fx.node.map_arg(node.kwargs, swap)
