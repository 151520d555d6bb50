"""Act 2, plan: what becomes of every layer, decided before anything is built.

Where the network is cut follows from the graph alone. A *separator* is a node that every path
from the image to the logits passes. The first convolution that is a separator ends the stem,
with its norm and whatever parameter-free separators follow; the last layer that is a separator is
the classifier, and the linear parameter-free separators before it (pooling, flatten, dropout)
belong to the head with it.
"""

import operator
from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import fx, nn

from brevitas_multiquant.errors import UnsupportedModelError
from brevitas_multiquant.quant.layers import WEIGHTED, can_quantize
from brevitas_multiquant.rewrite.trace import Trace, has_parameters, is_norm, is_tensor, shape_of

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d)
_UNQUANTIZED = (nn.modules.conv._ConvNd, nn.Bilinear)
_STATELESS_LINEAR_MODULES = (
    nn.AvgPool2d,
    nn.AdaptiveAvgPool2d,
    nn.Flatten,
    nn.Dropout,
    nn.Dropout2d,
    nn.Identity,
)
_STATELESS_LINEAR_CALLS = {
    torch.flatten,
    torch.mean,
    F.adaptive_avg_pool2d,
    F.avg_pool2d,
    "flatten",
    "mean",
    "view",
    "reshape",
    "squeeze",
}
_PRODUCTS = {torch.matmul, torch.bmm, torch.mm, torch.einsum, operator.matmul, torch.baddbmm}
_ATTENTION_MODULES = (nn.MultiheadAttention, nn.RNNBase, nn.Transformer)


@dataclass(frozen=True)
class LayerPlan:
    """One convolution or linear layer, and what becomes of it."""

    name: str
    kind: str
    part: str
    treatment: str
    reads: str


@dataclass
class Plan:
    """Where the model is cut, and what becomes of its parts; printable as a table.

    Args:
        model: class name of the model.
        stem_end: node whose output the branches read.
        head_start: node whose merged output the head reads.
        layers: every convolution and linear layer of the model.
        sites: input tensor of quantized layers -> the nodes that read it.
        norms: names of the norms that become switchable.
    """

    model: str
    stem_end: str
    head_start: str
    layers: list[LayerPlan] = field(default_factory=list)
    sites: dict[str, list[str]] = field(default_factory=dict)
    norms: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        columns = ("layer", "type", "part", "becomes", "reads")
        rows = [(la.name, la.kind, la.part, la.treatment, la.reads) for la in self.layers]
        table = _table([columns, *rows])
        return (
            f"{self.model}: stem ends at {self.stem_end}, branches end at {self.head_start}; "
            f"{len(self.sites)} activation quantizers, {len(self.norms)} switchable norms a "
            f"branch\n{table}"
        )


def _table(rows: list[tuple[str, ...]]) -> str:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


def make_plan(traced: Trace, name: str, stem: str | None = None, head: str | None = None) -> Plan:
    """Decide the cut and every layer's treatment.

    Args:
        traced: the model's graph.
        name: what to call the model in messages.
        stem: name of the module that ends the stem, instead of the first convolution.
        head: name of the module that starts the head, instead of the classifier.

    Raises:
        UnsupportedModelError: with every reason found.
    """
    reasons = _forbidden(traced)
    if reasons:
        raise UnsupportedModelError(name, reasons)
    separators = _separators(traced)
    stem_end = _find_stem_end(traced, separators, stem, reasons)
    head_start = _find_head_start(traced, separators, head, reasons)
    if reasons or stem_end is None or head_start is None:
        raise UnsupportedModelError(name, reasons)
    body = nodes_between(stem_end, head_start) if stem_end in ancestors(head_start) else []
    layers = [node for node in body if isinstance(traced.module(node), WEIGHTED)]
    reasons += _unknown_layers(traced, layers) + _hidden_layers(traced, body)
    if not layers:
        reasons.append(
            f"expected at least one layer between the stem (ends at {stem_end.name}) and the "
            f"classifier (starts after {head_start.name}), found none"
        )
    if reasons:
        raise UnsupportedModelError(name, reasons)
    return _describe(traced, name, stem_end, head_start, body, layers)


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


def _image_path(traced: Trace) -> list[fx.Node]:
    """Nodes on a path of tensors from the image to the output, in execution order."""
    nodes = list(traced.graph.nodes)
    fed: set[fx.Node] = {node for node in nodes if node.op == "placeholder"}
    for node in nodes:
        tensors = is_tensor(node) or node.op == "output" or _gives_tensors(node)
        if tensors and any(source in fed for source in node.all_input_nodes):
            fed.add(node)
    needed = ancestors(nodes[-1])
    return [node for node in nodes if node in fed and node in needed]


def _gives_tensors(node: fx.Node) -> bool:
    meta = node.meta.get("tensor_meta")
    return isinstance(meta, (list, tuple)) and any(hasattr(item, "shape") for item in meta)


def _separators(traced: Trace) -> list[fx.Node]:
    """Nodes that every path from image to output passes, in order."""
    path = _image_path(traced)
    place = {node: index for index, node in enumerate(path)}
    separators, reach = [], 0
    for node in path:
        if reach <= place[node] and is_tensor(node):
            separators.append(node)
        reach = max([reach, *(place[user] for user in node.users if user in place)])
    return separators


def _forbidden(traced: Trace) -> list[str]:
    """Every sign that the model is not a convolutional classification network."""
    on_path = set(_image_path(traced))
    reasons = []
    for node in traced.graph.nodes:
        module = traced.module(node)
        if isinstance(module, _ATTENTION_MODULES):
            reasons.append(
                f"{node.target} is a {type(module).__name__}; attention and recurrence mix "
                "positions by products of activations, which 2-bit weights cannot stand for"
            )
        elif type(module).__name__ == "CondConv2d":
            reasons.append(
                f"{node.target} is a CondConv2d: its weights depend on the input, so they cannot "
                "be stored as fixed 2-bit codes"
            )
        elif _multiplies_activations(node, on_path):
            reasons.append(
                f"node {node.name} multiplies matrices of activations (attention); expected "
                "a convolutional network"
            )
    output = traced.graph.output_node().args[0]
    if not isinstance(output, fx.Node) or not is_tensor(output) or len(shape_of(output)) != 2:
        reasons.append("expected a forward that returns logits (N, classes), got another output")
    return reasons


def _multiplies_activations(node: fx.Node, on_path: set[fx.Node]) -> bool:
    if node.op == "call_function" and node.target is F.scaled_dot_product_attention:
        return True
    product = node.op == "call_function" and node.target in _PRODUCTS
    product |= node.op == "call_method" and node.target in {"matmul", "bmm", "mm"}
    return product and sum(source in on_path for source in node.all_input_nodes) > 1


def _find_stem_end(
    traced: Trace, separators: list[fx.Node], override: str | None, reasons: list[str]
) -> fx.Node | None:
    if override is not None:
        return _named_separator(traced, separators, override, "stem", reasons, last=True)
    first = next((n for n in separators if isinstance(traced.module(n), _CONVOLUTIONS)), None)
    if first is None:
        reasons.append("expected a convolution that every path from the image passes, found none")
        return None
    end = first
    for node in separators[separators.index(first) + 1 :]:
        module = traced.module(node)
        owned_norm = is_norm(module) and end is first
        if node.all_input_nodes != [end] or (has_parameters(module) and not owned_norm):
            break
        end = node
    return end


def _find_head_start(
    traced: Trace, separators: list[fx.Node], override: str | None, reasons: list[str]
) -> fx.Node | None:
    if override is not None:
        start = _named_separator(traced, separators, override, "head", reasons, last=False)
        return None if start is None else start.all_input_nodes[0]
    classifier = next(
        (n for n in reversed(separators) if isinstance(traced.module(n), WEIGHTED)), None
    )
    if classifier is None:
        reasons.append("expected a classifier layer that every path passes, found none")
        return None
    after = nodes_between(classifier, traced.graph.output_node())
    later = [n for n in after if isinstance(traced.module(n), WEIGHTED)]
    if later:
        reasons.append(
            "expected a last layer that every path passes (the classifier), found "
            f"{later[-1].target} beside others; give the model a classifier (num_classes), or name "
            "where the float head starts (head=...)"
        )
        return None
    start = classifier.all_input_nodes[0]
    while start in separators and _is_stateless_linear(traced, start):
        start = start.all_input_nodes[0]
    return start


def _named_separator(
    traced: Trace,
    separators: list[fx.Node],
    name: str,
    option: str,
    reasons: list[str],
    last: bool,
) -> fx.Node | None:
    inside = [
        n for n in separators if n.op == "call_module" and f"{n.target}.".startswith(f"{name}.")
    ]
    if not inside:
        reasons.append(
            f"{option}={name!r}: expected the name of a module that every path from image to "
            "logits passes, found none of that name"
        )
        return None
    return inside[-1 if last else 0]


def _is_stateless_linear(traced: Trace, node: fx.Node) -> bool:
    module = traced.module(node)
    if module is not None:
        return isinstance(module, _STATELESS_LINEAR_MODULES)
    return node.op in ("call_function", "call_method") and node.target in _STATELESS_LINEAR_CALLS


def _unknown_layers(traced: Trace, layers: Iterable[fx.Node]) -> list[str]:
    unknown = {
        type(traced.module(node)).__name__: str(node.target)
        for node in layers
        if not can_quantize(traced.module(node))  # type: ignore[arg-type]
    }
    return [
        f"{name} ({where}) is a kind of layer without a rule; register one with "
        "brevitas_multiquant.quant.layers.register_layer"
        for name, where in unknown.items()
    ]


def _hidden_layers(traced: Trace, body: Iterable[fx.Node]) -> list[str]:
    """Weights that would stay float without anybody noticing."""
    reasons = []
    for node in body:
        module = traced.module(node)
        if module is None or isinstance(module, WEIGHTED):
            continue
        hidden = next(
            (m for m in module.modules() if isinstance(m, (*WEIGHTED, *_UNQUANTIZED))), None
        )
        if hidden is not None:
            reasons.append(
                f"{node.target} ({type(module).__name__}) holds a {type(hidden).__name__} that "
                "would stay float: expected layers of a known kind that the trace can see"
            )
    return reasons


def _describe(
    traced: Trace,
    name: str,
    stem_end: fx.Node,
    head_start: fx.Node,
    body: list[fx.Node],
    layers: list[fx.Node],
) -> Plan:
    plan = Plan(name, stem_end.name, head_start.name)
    for node in layers:
        plan.sites.setdefault(node.all_input_nodes[0].name, []).append(node.name)
    before, inside = ancestors(stem_end), set(body)
    for node in traced.graph.nodes:
        module = traced.module(node)
        part = "branch" if node in inside else "stem" if node in before else "head"
        if isinstance(module, WEIGHTED):
            treatment = "2-bit weights" if part == "branch" else "float, shared"
            reads = node.all_input_nodes[0].name
            kind = type(module).__name__
            plan.layers.append(LayerPlan(str(node.target), kind, part, treatment, reads))
        elif part == "branch" and is_norm(module) and str(node.target) not in plan.norms:
            plan.norms.append(str(node.target))
    return plan
