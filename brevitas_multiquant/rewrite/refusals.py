"""What cannot be rewritten, and why: every reason is collected, none is skipped in silence."""

import operator
from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from brevitas_multiquant.quant.layers import WEIGHTED, can_quantize
from brevitas_multiquant.rewrite.graph.axes import axes_of, mixes_positions
from brevitas_multiquant.rewrite.graph.kinds import LAYERS
from brevitas_multiquant.rewrite.graph.opaque import FUNCTIONAL_LAYERS, PRODUCTS
from brevitas_multiquant.rewrite.graph.paths import image_path
from brevitas_multiquant.rewrite.graph.trace import Trace, is_tensor, shape_of

_ATTENTION_MODULES = (nn.MultiheadAttention, nn.RNNBase, nn.RNNCellBase, nn.Transformer)
_PRODUCT_METHODS = {"matmul", "bmm", "mm", "__matmul__"}


def is_perceptron(traced: Trace) -> bool:
    """Whether a network has linear layers of vectors (N, features) alone."""
    layers = [node for node in traced.graph.nodes if isinstance(traced.module(node), LAYERS)]
    read = [shape_of(node.all_input_nodes[0]) for node in layers if node.all_input_nodes]
    linear = all(isinstance(traced.module(node), nn.Linear) for node in layers)
    return bool(layers) and linear and all(len(shape) == 2 for shape in read)


def not_convolutional(traced: Trace, perceptrons: bool = False) -> list[str]:
    """Every sign that the model is not a convolutional network.

    Args:
        traced: the model's graph.
        perceptrons: whether one of linear layers alone is welcome, too.
    """
    reasons = [reason for module in _modules(traced) for reason in _of_module(*module)]
    on_path = set(image_path(traced))
    products = [n for n in traced.graph.nodes if _multiplies_activations(n, on_path)]
    if products:
        reasons.append(
            f"{_count(products, 'multiplies', 'multiply')} matrices of activations (attention, "
            "or covariance pooling); expected a convolutional network that pools by averages or "
            "maxima"
        )
    axes = axes_of(traced)
    mixers = [node for node in traced.graph.nodes if mixes_positions(traced, node, axes)]
    if perceptrons and is_perceptron(traced):
        mixers = []  # what it adds up was flattened: there are no positions left
    if mixers:
        reasons.append(
            f"{_count(mixers, 'adds', 'add')} up positions where a convolutional network adds up "
            "channels (a mixer, or attention)"
        )
    found = {
        f"{getattr(node.target, '__name__', node.target)} {finding}": None
        for node in traced.graph.nodes
        for finding in node.meta.get("findings", [])
    }
    reasons += [f"{finding}, where the trace cannot see it; expected layers" for finding in found]
    return reasons + _of_outputs(traced)


def _of_outputs(traced: Trace) -> list[str]:
    expected = "expected a forward that returns tensors, alone or in tuples, lists, dicts and named"
    if not traced.outputs:
        return [
            f"{expected} tuples, got {traced.structure}: other containers can be registered with "
            "torch.utils._pytree.register_pytree_node"
        ]
    pairs = zip(traced.structure.names, traced.outputs, strict=True)
    return [
        f"{expected} tuples, got a number or a sequence at {name}{_why_unseen(traced, node)}"
        for name, node in pairs
        if not isinstance(node, fx.Node) or not is_tensor(node)
    ]


def _why_unseen(traced: Trace, node: Any) -> str:
    """Why the trace does not see into what an output is."""
    if not isinstance(node, fx.Node) or node.target not in traced.opaque:
        return ""
    why = traced.opaque[str(node.target)]
    return f", which {node.target} gives; that stays as it is, since it cannot be traced: {why}"


def _modules(traced: Trace) -> Iterable[tuple[str, nn.Module]]:
    """Modules that run, and those in the ones that stay one node."""
    seen = set()
    for node in traced.graph.nodes:
        module = traced.module(node)
        if module is not None and node.target not in seen:
            seen.add(node.target)
            for name, inner in module.named_modules():
                yield f"{node.target}.{name}".rstrip("."), inner


def _of_module(name: str, module: nn.Module) -> Iterable[str]:
    if isinstance(module, _ATTENTION_MODULES):
        yield (
            f"{name} is a {type(module).__name__}; attention and recurrence mix positions by "
            "products of activations, which 2-bit weights cannot stand for"
        )
    elif type(module).__name__ == "CondConv2d":
        yield (
            f"{name} is a CondConv2d: its weights depend on the input, so they cannot be stored "
            "as fixed 2-bit codes"
        )


def _multiplies_activations(node: fx.Node, on_path: set[fx.Node]) -> bool:
    if node.op == "call_function" and node.target is F.scaled_dot_product_attention:
        return True
    return is_product(node) and sum(source in on_path for source in node.all_input_nodes) > 1


def is_product(node: fx.Node) -> bool:
    """Whether a node multiplies matrices by a function of torch."""
    if node.op == "call_method":
        return node.target in _PRODUCT_METHODS
    return node.op == "call_function" and node.target in {*PRODUCTS, operator.matmul}


def _count(nodes: list[fx.Node], one: str, many: str) -> str:
    """How many nodes, and where the first of them stands."""
    where = list(nodes[0].meta.get("nn_module_stack", {}).values())
    place = f" in {where[-1][0]}" if where and nodes[0].op != "call_module" else ""
    first = nodes[0].target if nodes[0].op == "call_module" else nodes[0].name
    if len(nodes) == 1:
        return f"{first}{place} {one}"
    return f"{len(nodes)} nodes (the first: {first}{place}) {many}"


def unknown_layers(layers: Iterable[tuple[str, nn.Module]]) -> list[str]:
    """Layers of a branch that no rule knows."""
    unknown = {type(layer): name for name, layer in layers if not can_quantize(layer)}
    return [
        f"{kind.__name__} ({where}) is a kind of layer without a rule: expected a layer that "
        f"computes as its base does, got {kind.__module__}.{kind.__qualname__}, whose forward or "
        "weight is its own; register a rule with brevitas_multiquant.quant.layers.register_layer"
        for kind, where in unknown.items()
    ]


def hidden_layers(traced: Trace, body: Iterable[fx.Node]) -> list[str]:
    """Weights of a branch that would stay float without anybody noticing."""
    reasons = []
    for node in body:
        module = traced.module(node)
        if module is not None and not isinstance(module, WEIGHTED):
            known = WEIGHTED if node.target in traced.opaque else ()
            inner = (m for m in module.modules() if isinstance(m, LAYERS))
            hidden = next((m for m in inner if not isinstance(m, known)), None)
            if hidden is not None:
                reasons.append(
                    f"{node.target} ({type(module).__name__}) holds a {type(hidden).__name__} that "
                    "would stay float: expected layers of a known kind that the trace can see"
                )
        elif _is_functional_layer(node) and fixed_filter(traced, node) is None:
            called = getattr(node.target, "__name__", node.target)
            reasons.append(
                f"{node.name} ({called}) works on a raw or computed weight that would stay float; "
                "expected a module such as nn.Conv2d or nn.Linear in its place"
            )
    return reasons


def _is_functional_layer(node: fx.Node) -> bool:
    return is_functional_convolution(node) or is_product(node)


def is_functional_convolution(node: fx.Node) -> bool:
    """Whether a node calls a convolution or linear layer as a function."""
    return node.op == "call_function" and node.target in FUNCTIONAL_LAYERS


_READS_NO_VALUES = {
    *(torch.zeros_like, torch.ones_like, torch.full_like),
    *("new_tensor", "new_zeros", "new_ones", "new_full"),
}
_READS_ONE_VALUE = {"to", "type_as", "expand_as", "view_as", "reshape_as"}


def fixed_filter(traced: Trace, node: fx.Node) -> str | None:
    """Name of the constant that a functional layer works with, if its weight is no parameter.

    A filter may be computed in the forward, from the shape, type and device of the image too.
    """
    weight = node.args[1] if len(node.args) > 1 else node.kwargs.get("weight")
    if not isinstance(weight, fx.Node):
        return None
    sources, waiting = set(), [weight]
    while waiting:
        current = waiting.pop()
        sources.add(current)
        waiting += [source for source in _values_read(current) if source not in sources]
    names = [str(source.target) for source in sources if source.op == "get_attr"]
    reads_image = any(source.op in ("placeholder", "call_module") for source in sources)
    tensors = [operator.attrgetter(name)(traced.model) for name in names]
    trained = any(isinstance(tensor, nn.Parameter) for tensor in tensors)
    return None if reads_image or trained else min(names, default=weight.name)


def _values_read(node: fx.Node) -> list[fx.Node]:
    """The tensors whose values a node depends on, not only their shape, type and device."""
    if node.target in _READS_NO_VALUES:
        return []
    tensors = [source for source in node.all_input_nodes if is_tensor(source)]
    return tensors[:1] if node.target in _READS_ONE_VALUE else tensors
