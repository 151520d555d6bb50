"""Clean-ups of a traced graph, so that later acts see one form of each thing.

No in-place operations (a branch may not change what another reads), layers and dropout as modules,
norm and activation apart, identities gone.
"""

import operator
from collections.abc import Container, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from brevitas_multiquant.quant.layers import TRANSPOSED, WEIGHTED
from brevitas_multiquant.rewrite.graph.kinds import NORMS

_IN_PLACE_FUNCTIONS = {
    getattr(module, name): getattr(module, name[:-1])
    for module in (torch, F)
    for name in dir(module)
    if name.endswith("_") and not name.startswith("_") and hasattr(module, name[:-1])
}


_IN_PLACE_OPERATORS = {
    operator.iadd: operator.add,
    operator.isub: operator.sub,
    operator.imul: operator.mul,
    operator.itruediv: operator.truediv,
}


def normalise(graph_module: fx.GraphModule, opaque: Container[str]) -> None:
    """Clean up a graph in place.

    Args:
        graph_module: what has just been traced, in evaluation mode.
        opaque: names of modules that stay one node.
    """
    in_place = {module for module in graph_module.modules() if _is_in_place(module)}
    for module in in_place:
        module.inplace = False  # type: ignore[assignment]
    norm_acts = _split_norms_and_activations(graph_module)
    for node in list(graph_module.graph.nodes):
        _out_of_place(node)
        _dropout_as_module(graph_module, node)
        _layer_as_module(graph_module, node)
        _call_norm_and_activation(graph_module, node, norm_acts)
        _drop_identity(graph_module, node)
        if node.op == "call_module" and str(node.target) in opaque:
            _protect_inputs(node)
    graph_module.graph.eliminate_dead_code()
    graph_module.recompile()
    for node in graph_module.graph.nodes:
        module = _called(graph_module, node)
        if module in in_place and isinstance(module, _SAFE_IN_PLACE):
            module.inplace = alone_reads_output(graph_module, node, (*WEIGHTED, *NORMS))


def _protect_inputs(node: fx.Node) -> None:
    """An opaque module may work in place: it gets copies of what others read."""
    for source in node.all_input_nodes:
        with node.graph.inserting_before(node):
            copied = node.graph.call_method("clone", (source,))
        copied.meta["protects"] = str(node.target)
        node.replace_input_with(source, copied)


def _called(graph_module: fx.GraphModule, node: fx.Node) -> Any:
    return graph_module.get_submodule(str(node.target)) if node.op == "call_module" else None


def _is_in_place(module: nn.Module) -> bool:
    return getattr(module, "inplace", False) is True


_SAFE_IN_PLACE = (nn.ReLU, nn.ReLU6)
"""Activations whose gradient needs their output alone; in place they save an allocation."""


def alone_reads_output(
    graph_module: fx.GraphModule, node: fx.Node, makers: tuple[type[nn.Module], ...]
) -> bool:
    """Whether a module is called once, as the only reader of what a module of ``makers`` made."""
    sources = node.all_input_nodes
    if len(sources) != 1 or len(sources[0].users) != 1:
        return False
    if not isinstance(_called(graph_module, sources[0]), makers):
        return False
    return sum(other.target == node.target for other in node.graph.nodes) == 1


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


_DROPOUTS = {
    **{F.dropout: nn.Dropout, F.alpha_dropout: nn.AlphaDropout},
    **{F.dropout1d: nn.Dropout1d, F.dropout2d: nn.Dropout2d, F.dropout3d: nn.Dropout3d},
}


def _dropout_as_module(graph_module: fx.GraphModule, node: fx.Node) -> None:
    """``F.dropout(x, p, self.training)`` froze its mode in the trace; a module keeps it alive."""
    if node.op != "call_function" or node.target not in _DROPOUTS:
        return
    rate: Any = node.args[1] if len(node.args) > 1 else node.kwargs.get("p", 0.5)
    _call_new_module(graph_module, node, _DROPOUTS[node.target](rate), "functional_dropout")


_CONV_ARGUMENTS = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
_TRANSPOSED_ARGUMENTS = (*_CONV_ARGUMENTS[:5], "output_padding", "groups", "dilation")
_LAYERS_OF: dict[Any, type[nn.Module]] = {
    F.conv1d: nn.Conv1d,
    F.conv2d: nn.Conv2d,
    F.conv3d: nn.Conv3d,
    F.conv_transpose1d: nn.ConvTranspose1d,
    F.conv_transpose2d: nn.ConvTranspose2d,
    F.conv_transpose3d: nn.ConvTranspose3d,
    F.linear: nn.Linear,
}


def _layer_as_module(graph_module: fx.GraphModule, node: fx.Node) -> None:
    """``F.conv2d(x, self.weight)`` and its like as a layer that holds the same parameters."""
    if node.op != "call_function" or node.target not in _LAYERS_OF:
        return
    kind = _LAYERS_OF[node.target]
    names = _TRANSPOSED_ARGUMENTS if issubclass(kind, TRANSPOSED) else _CONV_ARGUMENTS
    arguments = dict(zip(names, node.args, strict=False)) | dict(node.kwargs)
    source, weight, bias = (arguments.pop(name, None) for name in _CONV_ARGUMENTS[:3])
    parameters = [_parameter_alone(graph_module, value) for value in (weight, bias)]
    missing_bias = bias is not None and parameters[1] is None
    if parameters[0] is None or missing_bias or any(_is_node(v) for v in arguments.values()):
        return
    layer = _empty_layer(kind, parameters[0], arguments)
    layer.weight, layer.bias = parameters  # type: ignore[assignment]
    node.args = (source,)  # type: ignore[assignment]
    _call_new_module(graph_module, node, layer, "functional")


def _is_node(value: Any) -> bool:
    return isinstance(value, fx.Node)


def _parameter_alone(graph_module: fx.GraphModule, node: Any) -> nn.Parameter | None:
    """The parameter that a node reads, if nothing else reads it."""
    if not _is_node(node) or node.op != "get_attr" or len(node.users) != 1:
        return None
    value = operator.attrgetter(str(node.target))(graph_module)
    return value if isinstance(value, nn.Parameter) else None


def _empty_layer(layer: type[nn.Module], weight: Tensor, arguments: Mapping[str, Any]) -> nn.Module:
    outputs, inputs, *kernel = weight.shape
    if layer is nn.Linear:
        return layer(inputs, outputs, bias=False, device="meta")
    if issubclass(layer, TRANSPOSED):  # its weights are (inputs, outputs, ...)
        outputs, inputs = inputs * arguments.get("groups", 1), outputs
    else:
        inputs *= arguments.get("groups", 1)
    return layer(inputs, outputs, tuple(kernel), bias=False, device="meta", **arguments)


def _call_new_module(
    graph_module: fx.GraphModule, node: fx.Node, module: nn.Module, prefix: str
) -> None:
    target = f"{prefix}_{node.name}"
    graph_module.add_submodule(target, module)
    node.op, node.target = "call_module", target
    node.args, node.kwargs = (node.args or (node.kwargs["input"],))[:1], {}


def _split_norms_and_activations(graph_module: fx.GraphModule) -> dict[str, list[str]]:
    """Timm's BatchNormAct2d as a plain batch norm; names of the modules that follow it."""
    followers: dict[str, list[str]] = {}
    called = dict.fromkeys(n.target for n in graph_module.graph.nodes if n.op == "call_module")
    for name in map(str, called):  # one inside of an opaque module stays whole
        norm = graph_module.get_submodule(name)
        if not isinstance(norm, nn.BatchNorm2d) or type(norm).__name__ != "BatchNormAct2d":
            continue
        plain = nn.BatchNorm2d(norm.num_features, norm.eps, norm.momentum, device="meta")
        plain.affine, plain.track_running_stats = norm.affine, norm.track_running_stats
        plain._parameters = norm._parameters
        plain._buffers = norm._buffers
        plain.train(norm.training)
        _set_submodule(graph_module, name, plain)
        followers[name] = []
        after: tuple[tuple[str, Any], ...] = (("drop", norm.drop), ("act", norm.act))
        for suffix, module in after:
            if not isinstance(module, nn.Identity):
                target = f"{name}_{suffix}"
                while hasattr(graph_module.get_submodule(name.rpartition(".")[0]), _leaf(target)):
                    target += "_"
                graph_module.add_submodule(target, module)
                followers[name].append(target)
    return followers


def _call_norm_and_activation(
    graph_module: fx.GraphModule, node: fx.Node, followers: Mapping[str, list[str]]
) -> None:
    last = node
    for target in followers.get(str(node.target), []) if node.op == "call_module" else []:
        with graph_module.graph.inserting_after(last):
            after = graph_module.graph.call_module(target)
        last.replace_all_uses_with(after)
        after.args = (last,)
        last = after


def _leaf(name: str) -> str:
    return name.rpartition(".")[2]


def _set_submodule(root: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, leaf = name.rpartition(".")
    setattr(root.get_submodule(parent), leaf, module)


def _drop_identity(graph_module: fx.GraphModule, node: fx.Node) -> None:
    module = _called(graph_module, node)
    if type(module) is nn.Identity:
        source = node.args[0] if node.args else next(iter(node.kwargs.values()))
        node.replace_all_uses_with(source)  # type: ignore[arg-type]
        graph_module.graph.erase_node(node)
