"""Sizes across a cut: what a part reads of another part's shapes, it reads of its own input.

A forward may read ``b = x.size(0)`` at the top and use it at the end. Stem, branch and head each
see their own tensors alone. So every such number is found again in the shapes of these: by running
the graph on images of other batches and sizes, and comparing. Where it is none of them, the image
is handed on for its size (`joints_with_image`); or it stays the number of the traced input shape,
guarded by `traced_size`.
"""

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import fx

from brevitas_multiquant.nn.traced_size import traced_size
from brevitas_multiquant.rewrite.graph.trace import Trace, gives_tensors, is_tensor, values_at

_OF_ANY_BATCH = ("device", "dtype")

Joint = tuple[fx.Node, ...]
"""Tensors that cross a cut."""


class CannotSettleError(Exception):
    """Why a size cannot be found again; becomes a reason of an `UnsupportedModelError`."""


def settle_sizes(traced: Trace, joints: Sequence[Joint]) -> list[str]:
    """Let each part read sizes of its own input alone; changes the graph in place.

    Args:
        traced: the model's graph.
        joints: image, ends of the stem, starts of the head, outputs.

    Returns:
        What a user should know: sizes that hold for the traced input shape alone.

    Raises:
        CannotSettleError: a size that is none of the part's input's, nor a constant.
    """
    parts = _parts(joints)
    if not any(part.crossing for part in parts):
        return []
    runs = _Runs.of(traced)
    notes: list[str] = []
    for part in parts:
        for size, readers in part.crossing.items():
            if min(readers) < min(part.starts):
                raise CannotSettleError(f"{min(readers).name} needs {size.name} before it is known")
            value = _Settled(part, min(readers), runs, notes).equal_of(size)
            for node in readers:
                _replace_input(node, size, value)
    traced.graph.eliminate_dead_code()
    traced.graph.lint()
    traced.model.recompile()
    return list(dict.fromkeys(notes))


def joints_with_image(traced: Trace, joints: Sequence[Joint]) -> list[Joint]:
    """The joints, with the image among them where a part needs its size and cannot tell it.

    As a head that makes maps as large as the image does: it is handed on for its size alone, so
    that the network takes images of any size.

    Args:
        traced: the model's graph; not changed.
        joints: as of `settle_sizes`.
    """
    (image,), stem_ends, head_starts, outputs = joints
    _, branch, head = parts = _parts(joints)
    if not any(part.crossing for part in parts):
        return list(joints)
    runs = _Runs.of(traced)
    in_branch, in_head = (
        not all(
            _Settled(part, min(readers), runs, []).finds(size)
            for size, readers in part.crossing.items()
            if _tensors_of(size) == {image}
        )
        for part in (branch, head)
    )
    if in_head and image not in head_starts:
        head_starts = (image, *head_starts)
    if (in_head or in_branch) and image not in stem_ends:
        stem_ends = (image, *stem_ends)
    return [(image,), stem_ends, head_starts, outputs]


def _parts(joints: Sequence[Joint]) -> "list[_Part]":
    return [_Part.between(starts, ends) for starts, ends in pairwise(joints)]


def _is_size(node: fx.Node) -> bool:
    """Whether a node's value is no tensor: a size, a device, and what is computed from them."""
    called = node.op in ("call_function", "call_method")
    return called and not is_tensor(node) and not gives_tensors(node)


def _is_computed(size: fx.Node) -> bool:
    """Whether a size is computed from others, not read."""
    return size.target is not operator.getitem and all(map(_is_size, size.all_input_nodes))


@dataclass(frozen=True)
class _Part:
    """A part of the network before it is cut off.

    Args:
        starts: the tensors that it reads.
        local: what its sizes may be read of.
        crossing: sizes of other tensors -> the nodes of the part that read them.
    """

    starts: Joint
    local: set[fx.Node]
    crossing: dict[fx.Node, list[fx.Node]]

    @classmethod
    def between(cls, starts: Joint, ends: Joint) -> "_Part":
        """What ``ends`` are computed from, behind ``starts``, not looking through sizes."""
        inside, waiting = set(), list(ends)
        while waiting:
            node = waiting.pop()
            if node not in inside and node not in starts:
                inside.add(node)
                waiting += [source for source in node.all_input_nodes if not _is_size(source)]
        local = inside | set(starts)
        crossing: dict[fx.Node, list[fx.Node]] = {}
        for node in starts[0].graph.nodes:
            for size in node.all_input_nodes if node in inside else ():
                if _is_size(size) and not _tensors_of(size) <= local:
                    crossing.setdefault(size, []).append(node)
        return cls(starts, local, crossing)


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
        _, channels, *positions = traced.input_shape
        runs = [values_at(traced, traced.input_shape)]
        try:
            runs.append(values_at(traced, (3, channels, *positions)))
        except Exception as error:  # whatever operations raise
            raise CannotSettleError(
                f"its forward does not run on a batch of three as it runs on one image ({error})"
            ) from error
        larger = [factor * size for factor, size in zip((2, 3, 5), positions, strict=False)]
        uneven = [size + more for more, size in zip((1, 3, 5), positions, strict=False)]
        for size in (larger, uneven):
            try:
                runs.append(values_at(traced, (2, channels, *size)))
            except Exception:  # the model is made for other sizes
                continue
        return cls(runs)

    def of_node(self, node: fx.Node) -> list[Any]:
        """What a node gave in each run."""
        return [run[node] for run in self.values]


class _Settled:
    """Finds a size again in the shapes of the tensors that a part reads.

    Args:
        part: whose size it is to be.
        reader: the first node that reads it: tensors that come later cannot tell.
        runs: what every node gave.
        notes: where sizes that hold for the traced input shape alone are told.
    """

    def __init__(self, part: _Part, reader: fx.Node, runs: _Runs, notes: list[str]) -> None:
        earlier = [start for start in part.starts if start < reader]
        self._start, *self._others = earlier or [min(part.starts)]
        self._local = part.local
        self._shapes = runs.of_node(self._start)
        self._runs = runs
        self._notes = notes

    def equal_of(self, size: fx.Node) -> Any:
        """What equals a size: numbers, nodes that read the start's shape, or tuples of both.

        Raises:
            CannotSettleError: nothing does.
        """
        if _tensors_of(size) <= self._local:
            return size
        if size.target is getattr and size.args[1] in _OF_ANY_BATCH:
            return self._call(getattr, (self._start, size.args[1]), None)
        values = self._runs.of_node(size)
        first = values[0]
        if all(type(value) is type(first) and value == first for value in values):
            return tuple(first) if isinstance(first, torch.Size) else first
        if isinstance(first, (tuple, list)):
            return tuple(self._number(size, list(entry)) for entry in zip(*values, strict=True))
        if _is_computed(size) and self._equal_number(values) is None:
            args, kwargs = fx.node.map_arg((size.args, size.kwargs), self.equal_of)
            return self._call(size.target, args, first, kwargs)
        return self._number(size, values)

    def finds(self, size: fx.Node) -> bool:
        """Whether `equal_of` knows something for images of any size."""
        if size.target is getattr and size.args[1] in _OF_ANY_BATCH:
            return True
        values = self._runs.of_node(size)
        if isinstance(values[0], (tuple, list)):
            entries = [list(entry) for entry in zip(*values, strict=True)]
            return all(map(self._finds_number, entries))
        if self._finds_number(values):
            return True
        sources = size.all_input_nodes
        return _is_computed(size) and all(map(self.finds, sources))

    def _finds_number(self, values: list[Any]) -> bool:
        constant = all(value == values[0] for value in values)
        return constant or self._equal_number(values) is not None

    def _number(self, size: fx.Node, values: list[Any]) -> Any:
        if all(value == values[0] for value in values):
            return values[0]
        found = self._equal_number(values)
        return self._guarded(size, values) if found is None else found()

    def _equal_number(self, values: list[Any]) -> Callable[[], fx.Node] | None:
        """How to read a number from the start: a multiple of the batch, or another dimension."""
        if any(type(value) is not int for value in values):
            return None
        times = values[0] // self._shapes[0][0]
        if values == [times * shape[0] for shape in self._shapes]:
            return lambda: self._batch(times)
        for start in (self._start, *self._others):
            shapes = self._runs.of_node(start)
            for dim in range(1, len(shapes[0])):
                if values == [shape[dim] for shape in shapes]:
                    return partial(self._read, start, dim)
        return None

    def _batch(self, times: int) -> fx.Node:
        batch = self._read(self._start, 0)
        value = times * self._shapes[0][0]
        return batch if times == 1 else self._call(operator.mul, (batch, times), value)

    def _guarded(self, size: fx.Node, values: list[Any]) -> fx.Node:
        """The number of the traced input shape, where only the size of the image changes it."""
        traced, batched = self._shapes[0][2:], self._shapes[1][2:]
        told = all(shape[2:] != traced for shape in self._shapes[2:])
        if values[0] != values[1] or traced != batched or not told:
            raise CannotSettleError(
                f"{size.name} ({values[0]}) is read from the size of one part's tensors and used "
                f"in another part, where no size of its input ({self._start.name}) equals it"
            )
        self._notes.append(
            f"{size.name} ({values[0]}) is read in one part and used in another: it holds for "
            "images of the size of input_shape; others are refused when the network runs"
        )
        return self._call(traced_size, (self._start, traced, values[0]), values[0])

    def _read(self, start: fx.Node, dim: int) -> fx.Node:
        return self._call("size", (start, dim), self._runs.of_node(start)[0][dim])

    def _call(self, target: Any, args: Any, value: Any, kwargs: Any = None) -> fx.Node:
        graph, reads = self._start.graph, [self._start]
        fx.node.map_arg((args, kwargs), reads.append)
        create = graph.call_method if isinstance(target, str) else graph.call_function
        with graph.inserting_after(max(reads)):
            node = create(target, args, kwargs)
        node.meta["tensor_meta"] = value
        return node


def _replace_input(node: fx.Node, old: fx.Node, new: Any) -> None:
    def swap(source: fx.Node) -> Any:
        return new if source is old else source

    node.args = fx.node.map_arg(node.args, swap)
    node.kwargs = fx.node.map_arg(node.kwargs, swap)
