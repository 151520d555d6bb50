"""Act 1, trace: the model's forward as a graph of its own layers.

The graph is normalised so that later acts see one form of each thing: no in-place operations (a
branch may not change what another reads), dropout as modules, norm and activation apart,
identities gone.
"""

import copy
import operator
import sys
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.passes.shape_prop import ShapeProp

from brevitas_multiquant.errors import TraceError
from brevitas_multiquant.quant.layers import WEIGHTED

NORMS = (
    nn.modules.batchnorm._BatchNorm,
    nn.modules.instancenorm._InstanceNorm,
    nn.LayerNorm,
    nn.GroupNorm,
    nn.RMSNorm,
)

_IN_PLACE_FUNCTIONS = {
    getattr(module, name): getattr(module, name[:-1])
    for module in (torch, F)
    for name in dir(module)
    if name.endswith("_") and not name.startswith("_") and hasattr(module, name[:-1])
}


def has_parameters(module: nn.Module | None) -> bool:
    """Whether there is a module, and it has parameters."""
    return module is not None and next(module.parameters(), None) is not None


def is_norm(module: nn.Module | None) -> bool:
    """Whether a module is a norm of any kind, by type or by what its author calls it."""
    if isinstance(module, NORMS):
        return True
    named_so = module is not None and "norm" in type(module).__name__.lower()
    return named_so and has_parameters(module) and not _contains_layer(module)


def _contains_layer(module: nn.Module | None) -> bool:
    return module is not None and any(isinstance(m, WEIGHTED) for m in module.modules())


_IN_PLACE_OPERATORS = {
    operator.iadd: operator.add,
    operator.isub: operator.sub,
    operator.imul: operator.mul,
    operator.itruediv: operator.truediv,
}


@dataclass
class Trace:
    """A traced model: a copy of it, its graph, and the shape of every tensor."""

    model: fx.GraphModule
    input_shape: tuple[int, ...]

    @property
    def graph(self) -> fx.Graph:
        """The graph of the model's forward."""
        return self.model.graph

    def module(self, node: fx.Node) -> nn.Module | None:
        """The module that a node calls, if it calls one."""
        return self.model.get_submodule(str(node.target)) if node.op == "call_module" else None


def is_tensor(node: fx.Node) -> bool:
    """Whether the node's value is one tensor."""
    return "tensor_meta" in node.meta and hasattr(node.meta["tensor_meta"], "shape")


def shape_of(node: fx.Node) -> tuple[int, ...]:
    """Shape of the tensor that a node gives."""
    return tuple(node.meta["tensor_meta"].shape)


def trace(model: nn.Module, input_shape: tuple[int, ...]) -> Trace:
    """Trace a copy of ``model`` in evaluation mode; the model itself is not touched.

    Args:
        model: any module whose forward takes one image batch.
        input_shape: (N, C, H, W).

    Raises:
        TraceError: the forward has control flow that depends on data, or does not run on images
            of that shape.
    """
    twin = copy.deepcopy(model)
    modes = {name: module.training for name, module in twin.named_modules()}
    twin.eval()
    try:
        graph_module = fx.GraphModule(twin, _Tracer(input_shape).trace(twin), type(model).__name__)
    except Exception as error:
        raise TraceError(
            f"{type(model).__name__}.forward cannot be traced: {_first_line(error)}; expected a "
            "forward without control flow that depends on the data"
        ) from error
    _normalise(graph_module)
    _propagate_shapes(graph_module, model, input_shape)
    for name, module in graph_module.named_modules():
        module.train(modes.get(name, model.training))
    return Trace(graph_module, input_shape)


class _Tracer(fx.Tracer):
    """Layers and norms are leaves, whatever their subclass; so is what timm marks as one.

    Unless it holds layers, which would stay float unseen. Control flow on shapes is decided by
    running the graph so far on fake tensors of the input's shape; control flow on data cannot be.
    """

    def __init__(self, input_shape: tuple[int, ...]) -> None:
        layers = sys.modules.get("timm.layers")
        functions = layers.get_notrace_functions() if layers else []
        super().__init__(
            autowrap_functions=tuple(f for f in functions if callable(f)),
            param_shapes_constant=True,
        )
        modules = layers.get_notrace_modules() if layers else []
        leaves = tuple(m for m in modules if isinstance(m, type))
        self._leaves = (*WEIGHTED, *leaves)
        self._opaque = {leaf for leaf in leaves if not issubclass(leaf, WEIGHTED)}
        self._leaf_names = ("DropPath", "DropBlock2d", "StochasticDepth")
        self._input_shape = input_shape
        self._fake = FakeTensorMode(allow_non_fake_inputs=True)
        self._values: dict[fx.Node, Any] = {}
        self._evaluating = False

    def to_bool(self, obj: fx.Proxy) -> bool:
        """The truth of a condition, where shapes alone decide it."""
        self._evaluating = True
        try:
            value = self._value(obj.node)
        finally:
            self._evaluating = False
        return value if isinstance(value, bool) else super().to_bool(obj)

    def _value(self, node: fx.Node) -> Any:
        if node not in self._values:
            args, kwargs = fx.node.map_arg((node.args, node.kwargs), self._value)
            with self._fake, torch.no_grad():
                self._values[node] = self._execute(node, args, kwargs)
        return self._values[node]

    def _execute(self, node: fx.Node, args: Any, kwargs: Any) -> Any:
        if node.op == "placeholder":
            return _empty_image(self.root, self._input_shape)
        if node.op == "get_attr":
            return operator.attrgetter(str(node.target))(self.root)
        if node.op == "call_module":
            return self.root.get_submodule(str(node.target))(*args, **kwargs)
        if node.op == "call_method":
            return getattr(args[0], str(node.target))(*args[1:], **kwargs)
        assert callable(node.target)
        return node.target(*args, **kwargs)

    def call_module(self, m: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        """A node, or the module's value while a condition is evaluated."""
        if self._evaluating:
            return forward(*args, **kwargs)
        return super().call_module(m, forward, args, kwargs)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: Any) -> Any:
        """An attribute of a module, not as a node while a condition is evaluated."""
        if self._evaluating:
            return attr_val
        return super().getattr(attr, attr_val, parameter_proxy_cache)

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        if type(module) in self._opaque and _contains_layer(module):
            return False
        if isinstance(module, self._leaves) or type(module).__name__ in self._leaf_names:
            return True
        if is_norm(module):
            return True
        return super().is_leaf_module(module, name)


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"


def _empty_image(model: nn.Module, shape: tuple[int, ...]) -> Tensor:
    parameter = next(model.parameters(), torch.empty(()))
    return torch.empty(shape, dtype=parameter.dtype, device=parameter.device)


def _propagate_shapes(
    graph_module: fx.GraphModule, model: nn.Module, input_shape: tuple[int, ...]
) -> None:
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    image = fake.from_tensor(_empty_image(graph_module, input_shape))
    try:
        with torch.no_grad():
            ShapeProp(graph_module, fake_mode=fake).propagate(image)
    except Exception as error:
        raise TraceError(
            f"{type(model).__name__} does not run on images of shape {input_shape}: "
            f"{_first_line(error.__cause__ or error)}; pass input_shape=(1, channels, height, "  # type: ignore[arg-type]
            "width) as the model expects it"
        ) from error


def _normalise(graph_module: fx.GraphModule) -> None:
    in_place = {module for module in graph_module.modules() if _is_in_place(module)}
    for module in in_place:
        module.inplace = False  # type: ignore[assignment]
    for node in list(graph_module.graph.nodes):
        _out_of_place(node)
        _dropout_as_module(graph_module, node)
        _split_norm_and_activation(graph_module, node)
        _drop_identity(graph_module, node)
    graph_module.graph.eliminate_dead_code()
    graph_module.recompile()
    for node in graph_module.graph.nodes:
        module = _called(graph_module, node)
        if module in in_place and isinstance(module, _SAFE_IN_PLACE):
            module.inplace = _alone_reads_fresh_tensor(graph_module, node)


def _called(graph_module: fx.GraphModule, node: fx.Node) -> Any:
    return graph_module.get_submodule(str(node.target)) if node.op == "call_module" else None


def _is_in_place(module: nn.Module) -> bool:
    return getattr(module, "inplace", False) is True


_SAFE_IN_PLACE = (nn.ReLU, nn.ReLU6)
"""Activations whose gradient needs their output alone; in place they save an allocation."""


def _alone_reads_fresh_tensor(graph_module: fx.GraphModule, node: fx.Node) -> bool:
    """Whether a node is the only reader of a tensor that the node before it has just made."""
    (source,) = node.all_input_nodes
    fresh = isinstance(_called(graph_module, source), (*WEIGHTED, *NORMS))
    calls = sum(other.target == node.target for other in node.graph.nodes)
    return fresh and len(source.users) == 1 and calls == 1


def _out_of_place(node: fx.Node) -> None:
    """Whoever reads the changed tensor later, by whichever name, reads the result instead."""
    if not _make_out_of_place(node):
        return
    changed, later = node.args[0] if node.args else node.kwargs["input"], set()
    following = node.next
    while following.op != "root":
        later.add(following)
        following = following.next
    assert isinstance(changed, fx.Node)
    changed.replace_all_uses_with(node, lambda user: user in later)


def _make_out_of_place(node: fx.Node) -> bool:
    if node.op == "call_function" and node.target in _IN_PLACE_OPERATORS:
        node.target = _IN_PLACE_OPERATORS[node.target]
        return True
    if node.op == "call_function" and _asks_for_in_place(node):
        return True
    if node.op == "call_method" and _is_in_place_method(str(node.target)):
        node.target = str(node.target)[:-1]
        return True
    return False


def _asks_for_in_place(node: fx.Node) -> bool:
    """Whether a function was told to work in place, by argument or by name; it no longer is."""
    if node.target in _IN_PLACE_FUNCTIONS:
        node.target = _IN_PLACE_FUNCTIONS[node.target]  # type: ignore[index]
        return True
    if node.kwargs.get("inplace"):
        node.kwargs = {**node.kwargs, "inplace": False}
        return True
    names = getattr(getattr(node.target, "__code__", None), "co_varnames", ())
    place = names.index("inplace") if "inplace" in names else len(node.args)
    if place >= len(node.args) or not node.args[place]:
        return False
    node.args = (*node.args[:place], False, *node.args[place + 1 :])
    return True


def _is_in_place_method(name: str) -> bool:
    return name.endswith("_") and not name.endswith("__") and hasattr(Tensor, name[:-1])


_DROPOUTS = {F.dropout: nn.Dropout, F.dropout2d: nn.Dropout2d, F.alpha_dropout: nn.AlphaDropout}


def _dropout_as_module(graph_module: fx.GraphModule, node: fx.Node) -> None:
    """``F.dropout(x, p, self.training)`` froze its mode in the trace; a module keeps it alive."""
    if node.op != "call_function" or node.target not in _DROPOUTS:
        return
    rate: Any = node.args[1] if len(node.args) > 1 else node.kwargs.get("p", 0.5)
    _call_new_module(graph_module, node, _DROPOUTS[node.target](rate), "functional_dropout")


def _call_new_module(
    graph_module: fx.GraphModule, node: fx.Node, module: nn.Module, prefix: str
) -> None:
    target = f"{prefix}_{node.name}"
    graph_module.add_submodule(target, module)
    node.op, node.target = "call_module", target
    node.args, node.kwargs = (node.args or (node.kwargs["input"],))[:1], {}


def _split_norm_and_activation(graph_module: fx.GraphModule, node: fx.Node) -> None:
    """Timm's BatchNormAct2d as a batch norm and what follows it, under names of their own."""
    norm = _called(graph_module, node)
    if not isinstance(norm, nn.BatchNorm2d) or type(norm).__name__ != "BatchNormAct2d":
        return
    plain = nn.BatchNorm2d(norm.num_features, norm.eps, norm.momentum, device="meta")
    plain.affine, plain.track_running_stats = norm.affine, norm.track_running_stats
    plain._parameters = norm._parameters
    plain._buffers = norm._buffers
    plain.train(norm.training)
    _set_submodule(graph_module, str(node.target), plain)
    last = node
    followers: tuple[tuple[str, Any], ...] = (("drop", norm.drop), ("act", norm.act))
    for suffix, follower in followers:
        if isinstance(follower, nn.Identity):
            continue
        target = f"{node.target}_{suffix}"
        if target not in dict(graph_module.named_modules()):
            graph_module.add_submodule(target, follower)
        with graph_module.graph.inserting_after(last):
            after = graph_module.graph.call_module(target)
        last.replace_all_uses_with(after)
        after.args = (last,)
        last = after


def _set_submodule(root: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, leaf = name.rpartition(".")
    setattr(root.get_submodule(parent), leaf, module)


def _drop_identity(graph_module: fx.GraphModule, node: fx.Node) -> None:
    module = _called(graph_module, node)
    if type(module) is nn.Identity:
        source = node.args[0] if node.args else next(iter(node.kwargs.values()))
        node.replace_all_uses_with(source)  # type: ignore[arg-type]
        graph_module.graph.erase_node(node)
