"""How a body's graph runs with other widths: which dimensions and which constants follow.

The graph is run once on the meta device with every shrinkable channel set `WIDER` times as wide.
Dimensions that come out wider carry channels; where an operation fails or loses its channels, a
number written in the author's code (a split size, a reshape) or a constant tensor has to follow,
and it is found by trying. Wider and not narrower, since every size can be multiplied.
"""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx

from brevitas_multiquant.quant.layers import WEIGHTED
from brevitas_multiquant.rewrite.graph.channels import ChannelSets, channel_dim, is_dense, module_of
from brevitas_multiquant.rewrite.graph.decide import call_node
from brevitas_multiquant.rewrite.graph.kinds import (
    contains_layer,
    has_parameters,
    is_constant_norm,
    is_norm,
)
from brevitas_multiquant.rewrite.graph.trace import gives_tensors, is_tensor, shape_of

WIDER = 7
"""A prime, so that a dimension that became wider is not mistaken for another one."""

_MOST_TRIALS = 200

Path = tuple[Any, ...]
"""Where a value stands in ``(args, kwargs)`` of a node."""


class CannotScaleError(Exception):
    """Constants that do not follow the channels; caught by `rewrite.narrow.widths`."""


@dataclass(frozen=True)
class Repair:
    """What must follow the channels at one node.

    Args:
        literals: places of numbers in the node's arguments.
        constants: constant tensors that it reads, by node -> the dimension to cut.
    """

    literals: tuple[Path, ...] = ()
    constants: tuple[tuple[str, int], ...] = ()


@dataclass
class Scaling:
    """What follows the channels in a body.

    Args:
        dims: node -> dimensions of its tensor that carry channels.
        repairs: node -> constants that must follow.
        sizes: channel set -> sizes that have to stay whole numbers when it shrinks.
    """

    dims: dict[str, tuple[int, ...]] = field(default_factory=dict)
    repairs: dict[str, Repair] = field(default_factory=dict)
    sizes: dict[int, set[int]] = field(default_factory=dict)


def find_scaling(body: fx.GraphModule, sets: ChannelSets) -> Scaling:
    """Run the body wider and see what follows.

    Args:
        body: traced, with shapes in the nodes' ``meta``; not changed.
        sets: its channel sets.

    Raises:
        CannotScaleError: names the operation that does not follow.
    """
    probe = _Probe(body, sets)
    with torch.no_grad(), torch.device("meta"):
        for node in body.graph.nodes:
            if node.op != "output":
                probe.run(node)
    return probe.scaling


class _Probe:
    """One run of the graph with wider channel sets."""

    def __init__(self, body: fx.GraphModule, sets: ChannelSets) -> None:
        self.body = body
        self.sets = sets
        self.scaling = Scaling()
        self.values: dict[fx.Node, Any] = {}
        self.constant: set[fx.Node] = set()
        self.home: dict[fx.Node, int] = {}

    def run(self, node: fx.Node) -> None:
        """Give the node its value, and note what became wider."""
        value = self._value(node)
        self.values[node] = value
        self._note_home(node)
        if node.op == "get_attr" or (
            node.all_input_nodes and self.constant.issuperset(node.all_input_nodes)
        ):
            self.constant.add(node)
        elif isinstance(value, Tensor):
            before = shape_of(node)
            wider = tuple(d for d, size in enumerate(value.shape) if size != before[d])
            self.scaling.dims[node.name] = wider
            self._must_stay_whole(node, [before[d] for d in wider])
        elif isinstance(value, (tuple, list)) and _tensors(value):
            for part, meta in zip(value, node.meta["tensor_meta"], strict=True):
                if isinstance(part, Tensor):
                    pairs = zip(part.shape, meta.shape, strict=True)
                    self._must_stay_whole(node, [old for new, old in pairs if new != old])
        elif type(value) is int and value % WIDER == 0:
            self._must_stay_whole(node, [value // WIDER])

    def _note_home(self, node: fx.Node) -> None:
        """The channel set that a number belongs to is that of the tensor whose size it is."""
        homes = [self.home[source] for source in node.all_input_nodes if source in self.home]
        if node.name in self.sets.of:
            self.home[node] = self.sets.of[node.name]
        elif homes:
            self.home[node] = homes[0]

    def _must_stay_whole(self, node: fx.Node, sizes: list[int]) -> None:
        if node in self.home:
            self.scaling.sizes.setdefault(self.home[node], set()).update(sizes)

    def _value(self, node: fx.Node) -> Any:
        if node.op == "placeholder":
            before = shape_of(node)
            wider = WIDER if self.sets.shrinks(node) else 1
            return torch.empty(before[0], before[1] * wider, *before[2:])
        if node.op == "get_attr":
            return _fake_like(call_node(self.body, node, (), {}))
        module = module_of(self.body, node)
        if isinstance(module, WEIGHTED):
            return self._layer(node, module)
        if (is_norm(module) or is_constant_norm(module)) and shape_of(node) == shape_of(
            node.all_input_nodes[0]
        ):
            return torch.empty_like(self.values[node.all_input_nodes[0]])
        if has_parameters(module):
            return self._elementwise(node)
        return self._operation(node)

    def _layer(self, node: fx.Node, module: Any) -> Tensor:
        """The shape that a layer gives: its channels by its set, every other dimension as read."""
        source = node.all_input_nodes[0]
        x, before, after = self.values[source], shape_of(source), list(shape_of(node))
        channel = channel_dim(module, node)
        for dim, size in enumerate(before):
            if dim != channel and x.shape[dim] != size:
                after[dim] *= WIDER
        reads_wider = x.shape[channel] != before[channel]
        if is_dense(module):
            gives_wider = self.sets.shrinks(node) and after[channel] > 1
        else:
            gives_wider = reads_wider
            if reads_wider:
                self._must_stay_whole(source, [module.groups])
        after[channel] *= WIDER if gives_wider else 1
        return x.new_empty(after)

    def _elementwise(self, node: fx.Node) -> Tensor:
        source = node.all_input_nodes[0]
        if contains_layer(module_of(self.body, node)):
            raise CannotScaleError(f"the layers in {node.target} cannot be traced")
        if shape_of(node) != shape_of(source):
            raise CannotScaleError(f"{node.target} is neither layer nor norm and changes the shape")
        return torch.empty_like(self.values[source])

    def _operation(self, node: fx.Node) -> Any:
        plain, error = self._attempt(node, Repair())
        if not is_tensor(node) and not gives_tensors(node):
            if error is not None:
                raise CannotScaleError(f"{node.name} fails: {error}")
            return plain
        fits = error is None and _fits(plain, node.meta["tensor_meta"])
        if fits and (_carries(plain, node.meta["tensor_meta"]) or not self._reads_wider(node)):
            return plain
        for repair in itertools.islice(self._repairs(node), _MOST_TRIALS):
            value, failed = self._attempt(node, repair)
            meta = node.meta["tensor_meta"]
            if failed is None and _fits(value, meta) and _carries(value, meta):
                self.scaling.repairs[node.name] = repair
                self._note_repair(node, repair)
                return value
        if fits:
            return plain
        raise CannotScaleError(f"no constant of {node.name} ({_short(node)}) follows the channels")

    def _note_repair(self, node: fx.Node, repair: Repair) -> None:
        literals = [abs(value_at((node.args, node.kwargs), path)) for path in repair.literals]
        by_name = {source.name: source for source in node.all_input_nodes}
        cut = [self.values[by_name[name]].shape[dim] for name, dim in repair.constants]
        self._must_stay_whole(node, [*literals, *cut])

    def _reads_wider(self, node: fx.Node) -> bool:
        return any(
            _carries(self.values[source], source.meta.get("tensor_meta"))
            for source in node.all_input_nodes
            if source not in self.constant
        )

    def _repairs(self, node: fx.Node) -> Iterator[Repair]:
        """Candidates, those that change least first."""
        literals: list[tuple[Path, ...]] = [(), *_literal_groups((node.args, node.kwargs))]
        constants: list[list[tuple[tuple[str, int], ...]]] = []
        for source in node.all_input_nodes:
            value = self.values[source]
            if source in self.constant and isinstance(value, Tensor):
                dims = [d for d, size in enumerate(value.shape) if size > 1]
                constants.append([(), *(((source.name, d),) for d in dims)])
        for chosen in itertools.product(*constants):
            for group in literals:
                if group or any(chosen):
                    yield Repair(group, tuple(itertools.chain.from_iterable(chosen)))

    def _attempt(self, node: fx.Node, repair: Repair) -> tuple[Any, str | None]:
        structure: Any = (node.args, node.kwargs)
        for path in repair.literals:
            structure = change_at(structure, path, lambda literal: literal * WIDER)
        cut = dict(repair.constants)

        def value(source: fx.Node) -> Any:
            known = self.values[source]
            return _wider(known, cut[source.name]) if source.name in cut else known

        args, kwargs = fx.node.map_arg(structure, value)
        try:
            return call_node(self.body, node, args, kwargs), None
        except Exception as error:  # whatever an operation raises for sizes that do not fit
            return None, str(error).partition("\n")[0]


def _fake_like(value: Any) -> Any:
    return torch.empty(value.shape, dtype=value.dtype) if isinstance(value, Tensor) else value


def _wider(value: Tensor, dim: int) -> Tensor:
    shape = list(value.shape)
    shape[dim] *= WIDER
    return value.new_empty(shape)


def _tensors(value: Any) -> list[Tensor]:
    parts = value if isinstance(value, (tuple, list)) else [value]
    return [part for part in parts if isinstance(part, Tensor)]


def _pairs(value: Any, meta: Any) -> Iterator[tuple[Tensor, Any]] | None:
    if isinstance(value, Tensor):
        return iter([(value, meta)]) if hasattr(meta, "shape") else None
    parts = _tensors(value)
    metas = [m for m in meta if hasattr(m, "shape")] if isinstance(meta, (tuple, list)) else []
    return zip(parts, metas, strict=True) if parts and len(parts) == len(metas) else None


def _fits(value: Any, meta: Any) -> bool:
    """Whether every dimension is as before or `WIDER` times that."""
    pairs = _pairs(value, meta)
    return pairs is not None and all(
        len(part.shape) == len(old.shape)
        and all(n in (o, o * WIDER) for n, o in zip(part.shape, old.shape, strict=True))
        for part, old in pairs
    )


def _carries(value: Any, meta: Any) -> bool:
    """Whether every tensor became wider."""
    pairs = _pairs(value, meta)
    return pairs is not None and all(tuple(part.shape) != tuple(old.shape) for part, old in pairs)


def _short(node: fx.Node) -> str:
    return str(node.target if node.op != "call_function" else getattr(node.target, "__name__", ""))


def _literal_groups(structure: Any) -> list[tuple[Path, ...]]:
    """Numbers that may follow together: one alone, the largest first; a list; all."""
    paths = [path for path, value in _leaves(structure) if abs(value) > 1]
    largest_first = sorted(paths, key=lambda path: -abs(value_at(structure, path)))
    singles: list[tuple[Path, ...]] = [(path,) for path in largest_first]
    lists = [
        tuple(members)
        for _, group in itertools.groupby(paths, key=lambda path: path[:-1])
        if len(members := list(group)) > 1
    ]
    groups = [*lists, *singles] if len(paths) > 1 else singles
    everything = tuple(paths)
    return groups if everything in groups or not paths else [*groups, everything]


def _leaves(structure: Any, path: Path = ()) -> Iterator[tuple[Path, int]]:
    if type(structure) is int:
        yield path, structure
    elif isinstance(structure, slice):
        for name in ("start", "stop"):
            yield from _leaves(getattr(structure, name), (*path, name))
    elif isinstance(structure, dict):
        for key, value in structure.items():
            yield from _leaves(value, (*path, key))
    elif isinstance(structure, (tuple, list)):
        for index, value in enumerate(structure):
            yield from _leaves(value, (*path, index))


def value_at(structure: Any, path: Path) -> Any:
    """What stands at a place of nested arguments."""
    for step in path:
        structure = getattr(structure, step) if isinstance(structure, slice) else structure[step]
    return structure


def change_at(structure: Any, path: Path, change: Callable[[Any], Any]) -> Any:
    """Nested arguments with the value at one place changed."""
    if not path:
        return change(structure)
    step, rest = path[0], path[1:]
    if isinstance(structure, slice):
        parts = {name: getattr(structure, name) for name in ("start", "stop", "step")}
        parts[step] = change_at(parts[step], rest, change)
        return slice(parts["start"], parts["stop"], parts["step"])
    if isinstance(structure, dict):
        return {**structure, step: change_at(structure[step], rest, change)}
    items = list(structure)
    items[step] = change_at(items[step], rest, change)
    return tuple(items) if isinstance(structure, tuple) else items
