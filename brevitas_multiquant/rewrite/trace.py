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
        graph_module = fx.GraphModule(twin, _Tracer().trace(twin), type(model).__name__)
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
    """Layers and norms are leaves, whatever their subclass; so is what timm marks as one."""

    def __init__(self) -> None:
        layers = sys.modules.get("timm.layers")
        functions = layers.get_notrace_functions() if layers else []
        super().__init__(
            autowrap_functions=tuple(f for f in functions if callable(f)),
            param_shapes_constant=True,
        )
        modules = layers.get_notrace_modules() if layers else []
        leaves = tuple(m for m in modules if isinstance(m, type))
        self._leaves = (*WEIGHTED, *NORMS, *leaves)
        self._leaf_names = ("DropPath", "DropBlock2d", "StochasticDepth")

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        if isinstance(module, self._leaves) or type(module).__name__ in self._leaf_names:
            return True
        return super().is_leaf_module(module, name)


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"


def _propagate_shapes(
    graph_module: fx.GraphModule, model: nn.Module, input_shape: tuple[int, ...]
) -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    parameter = next(graph_module.parameters(), torch.empty(()))
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    image = fake.from_tensor(torch.empty(input_shape, dtype=parameter.dtype))
    try:
        with torch.no_grad(), torch.device("cpu"):
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
    if node.op == "call_function" and node.target in _IN_PLACE_OPERATORS:
        node.target = _IN_PLACE_OPERATORS[node.target]
    elif node.op == "call_function" and node.kwargs.get("inplace"):
        node.kwargs = {**node.kwargs, "inplace": False}
    elif node.op == "call_method" and _is_in_place_method(str(node.target)):
        node.target = str(node.target)[:-1]


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
