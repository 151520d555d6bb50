"""Act 2, plan: what becomes of every layer, decided before anything is built.

`joints` finds where the network is cut, `refusals` what speaks against it.
"""

from collections.abc import Container, Iterable
from dataclasses import dataclass, field, replace

import torch.nn.functional as F
from torch import fx, nn

from brevitas_multiquant.core.text_table import text_table
from brevitas_multiquant.errors import UnsupportedModelError
from brevitas_multiquant.quant.layers import CONVOLUTIONS, WEIGHTED
from brevitas_multiquant.rewrite.graph.kinds import (
    LAYERS,
    contains_layer,
    is_constant_norm,
    is_norm,
)
from brevitas_multiquant.rewrite.graph.paths import ancestors, nodes_between
from brevitas_multiquant.rewrite.graph.sizes import (
    CannotSettleError,
    Joint,
    joints_with_image,
    settle_sizes,
)
from brevitas_multiquant.rewrite.graph.trace import Trace
from brevitas_multiquant.rewrite.intake.ties import shared_between_parts
from brevitas_multiquant.rewrite.joints import Joints
from brevitas_multiquant.rewrite.refusals import (
    fixed_filter,
    hidden_layers,
    is_functional_convolution,
    is_perceptron,
    is_product,
    not_convolutional,
    unknown_layers,
)
from brevitas_multiquant.rewrite.shortcuts import shortcuts


@dataclass(frozen=True)
class LayerPlan:
    """One convolution or linear layer, module or function call, and what becomes of it.

    Args:
        name: fully qualified name, or the node's name if it is a function call.
        kind: its type.
        part: ``"stem"``, ``"branch"``, ``"head"``, or ``"-"`` if it does not run.
        treatment: what it becomes.
        reads: nodes whose tensors it reads, separated by commas.
        why: the reason.
    """

    name: str
    kind: str
    part: str
    treatment: str
    reads: str
    why: str


@dataclass
class Plan:
    """Where the model is cut, and what becomes of its parts; printable as a table.

    Args:
        model: class name of the model.
        stem_ends: nodes whose outputs the branches read.
        head_starts: nodes whose outputs, merged, the head reads.
        layers: every convolution and linear layer of the model, also those called as functions.
        sites: input tensor of quantized layers -> the nodes that read it.
        norms: names of the norms that become switchable.
        untraced_layers: quantized layers in modules that cannot be traced, each with a quantizer of
            its own.
        opaque: modules that cannot be traced.
        untraced: why, with the place in the author's code, and what that costs; one per entry of
            ``opaque``.
        notes: what else a user should know.
    """

    model: str
    stem_ends: tuple[str, ...]
    head_starts: tuple[str, ...]
    layers: list[LayerPlan] = field(default_factory=list)
    sites: dict[str, list[str]] = field(default_factory=dict)
    norms: list[str] = field(default_factory=list)
    untraced_layers: list[str] = field(default_factory=list)
    opaque: list[str] = field(default_factory=list)
    untraced: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def set_treatment(self, names: Container[str], treatment: str, why: str = "") -> None:
        """Say of some layers that they become something else than was decided at first."""
        self.layers = [
            replace(layer, treatment=treatment, why=why or layer.why)
            if layer.name in names
            else layer
            for layer in self.layers
        ]

    def __str__(self) -> str:
        columns = ("layer", "type", "part", "becomes", "reads", "why")
        rows = [(la.name, la.kind, la.part, la.treatment, la.reads, la.why) for la in self.layers]
        table = "\n".join([text_table([columns, *rows], "<"), *self.notes])
        quantizers = len(self.sites) + len(self.untraced_layers)
        return (
            f"{self.model}: stem ends at {', '.join(self.stem_ends)}, branches end at "
            f"{', '.join(self.head_starts)}; "
            f"{quantizers} activation quantizers, {len(self.norms)} switchable norms per branch\n"
            f"{table}"
        )


def make_plan(
    traced: Trace,
    name: str,
    stem: str | None = None,
    head: str | None = None,
    *,
    float_shortcuts: bool = False,
    perceptrons: bool = False,
    one_tensor: bool = False,
) -> Plan:
    """Decide the cut and every layer's treatment.

    Args:
        traced: the model's graph; sizes that cross the cut are settled in it.
        name: what to call the model in messages.
        stem: name of the module that ends the stem, instead of the first convolution.
        head: name of the module that starts the head, instead of the classifier.
        float_shortcuts: the 1x1 convolutions of shortcuts stay as they are.
        perceptrons: a network of linear layers alone is welcome.
        one_tensor: the image is not handed on for its size, which becomes that of the trace.

    Raises:
        UnsupportedModelError: with every reason found.
    """
    reasons = not_convolutional(traced, perceptrons)
    if reasons:
        raise UnsupportedModelError(name, reasons)
    linear = perceptrons and is_perceptron(traced)
    joints = Joints(traced, reasons, (nn.Linear,) if linear else CONVOLUTIONS)
    stem_ends, head_starts = joints.find(stem, head)
    if reasons:
        raise UnsupportedModelError(name, reasons)
    joints_in_order = [(traced.image,), stem_ends, head_starts, traced.outputs]
    notes = _settle_sizes(traced, joints_in_order, reasons, one_tensor)
    _, stem_ends, head_starts, _ = joints_in_order
    body = nodes_between(stem_ends, head_starts) if stem_ends else []
    reasons += shared_between_parts(traced, _parts(traced, body, stem_ends))
    layers = [*_layers(traced, body), *_inner_layers(traced, body)]
    reasons += unknown_layers(layers) + hidden_layers(traced, body)
    if not layers:
        reasons.append(
            f"expected at least one layer between the stem (ends at {_names(stem_ends)}) and the "
            f"head (starts after {_names(head_starts)}), found none"
        )
    if reasons:
        raise UnsupportedModelError(name, reasons)
    ends, starts = (tuple(n.name for n in joint) for joint in (stem_ends, head_starts))
    plan = Plan(name, ends, starts, notes=notes)
    stays = shortcuts(traced, body) if float_shortcuts else []
    plan = _describe(traced, plan, body, stem_ends, stays)
    plan.set_treatment(stays, "float", "a shortcut")
    return plan


def _names(joint: Joint) -> str:
    return ", ".join(node.name for node in joint)


def _settle_sizes(
    traced: Trace, joints: list[Joint], reasons: list[str], one_tensor: bool
) -> list[str]:
    """What a user should know of sizes; the image is added to the joints that need it."""
    try:
        if not one_tensor:
            joints[:] = joints_with_image(traced, joints)
        return settle_sizes(traced, joints)
    except CannotSettleError as error:
        reasons.append(f"{error}; read it from the tensor that it is used with")
        return []


def _layers(traced: Trace, nodes: Iterable[fx.Node]) -> list[tuple[str, nn.Module]]:
    """Quantizable layers that nodes call, by name."""
    called = ((str(node.target), traced.module(node)) for node in nodes)
    return [(name, module) for name, module in called if isinstance(module, WEIGHTED)]


def _inner_layers(traced: Trace, nodes: Iterable[fx.Node]) -> list[tuple[str, nn.Module]]:
    """Quantizable layers in the modules that cannot be traced."""
    return [(name, m) for name, m in _inside(traced, nodes) if isinstance(m, WEIGHTED)]


def _inside(traced: Trace, nodes: Iterable[fx.Node]) -> list[tuple[str, nn.Module]]:
    opaque = {str(node.target): traced.module(node) for node in nodes if _is_opaque(traced, node)}
    return [
        (f"{name}.{inner}", module)
        for name, root in opaque.items()
        if root is not None
        for inner, module in root.named_modules()
        if inner
    ]


def _is_opaque(traced: Trace, node: fx.Node) -> bool:
    return node.op == "call_module" and node.target in traced.opaque


_PARTS = {
    "stem": ("float, shared", "before the branches"),
    "branch": ("2-bit weights", "between stem and head"),
    "head": ("float, shared", "behind the branches"),
}


_FUNCTIONAL_NORMS = {F.batch_norm, F.layer_norm, F.group_norm, F.instance_norm, F.rms_norm}


def _parts(traced: Trace, body: list[fx.Node], stem_ends: Joint) -> dict[str, list[fx.Node]]:
    before, inside = ancestors(stem_ends), set(body)
    parts: dict[str, list[fx.Node]] = {"stem": [], "branch": [], "head": []}
    for node in traced.graph.nodes:
        part = "branch" if node in inside else "stem" if node in before else "head"
        parts[part].append(node)
    return parts


def _describe(
    traced: Trace, plan: Plan, body: list[fx.Node], stem_ends: Joint, stays: Container[str]
) -> Plan:
    parts = _parts(traced, body, stem_ends)
    for node in body:
        if isinstance(traced.module(node), WEIGHTED) and str(node.target) not in stays:
            plan.sites.setdefault(node.all_input_nodes[0].name, []).append(node.name)
    for part, nodes in parts.items():
        plan.layers += _rows(traced, nodes, part)
    plan.layers += _left_out(traced, {row.name for row in plan.layers})
    plan.opaque = list(traced.opaque)
    plan.untraced_layers = [name for name, _ in _inner_layers(traced, body)]
    plan.norms = _norms(traced, body)
    plan.untraced = _untraced(traced)
    plan.notes = [*plan.untraced, *plan.notes, *_notes(traced, body)]
    return plan


def _rows(traced: Trace, nodes: list[fx.Node], part: str) -> Iterable[LayerPlan]:
    """Every layer of one part, by isinstance, so that no subclass is skipped."""
    treatment, why = _PARTS[part]
    calls: dict[str, list[str]] = {}
    for node in nodes:
        if isinstance(traced.module(node), LAYERS):
            calls.setdefault(str(node.target), []).append(node.all_input_nodes[0].name)
        elif is_functional_convolution(node) or is_product(node):
            yield _function_row(traced, node, part)
    for name, reads in calls.items():
        kind = type(traced.model.get_submodule(name)).__name__
        yield LayerPlan(name, kind, part, treatment, ", ".join(reads), why)
    for name, module in _inside(traced, nodes):
        if isinstance(module, LAYERS):
            kind = type(module).__name__
            yield LayerPlan(name, kind, part, treatment, "its own input", f"{why}, untraced")


def _function_row(traced: Trace, node: fx.Node, part: str) -> LayerPlan:
    kind = f"{getattr(node.target, '__name__', node.target)}()"
    fixed = fixed_filter(traced, node)
    treatment, why = _PARTS[part]
    if fixed is not None:
        treatment, why = "float", f"{fixed} is a constant: nothing to train"
    return LayerPlan(node.name, kind, part, treatment, node.all_input_nodes[0].name, why)


def _left_out(traced: Trace, planned: set[str]) -> list[LayerPlan]:
    """Layers of the model that its forward does not run in evaluation: auxiliary heads."""
    why = "does not run in evaluation"
    return [
        LayerPlan(name, kind, "-", "left out", "-", why)
        for name, kind in traced.layers.items()
        if name not in planned
    ]


def _norms(traced: Trace, body: list[fx.Node]) -> list[str]:
    called = [(str(node.target), traced.module(node)) for node in body]
    return list(dict.fromkeys(n for n, m in (*called, *_inside(traced, body)) if is_norm(m)))


def _untraced(traced: Trace) -> list[str]:
    """What cannot be traced, why, and what that costs."""
    notes = []
    for name, why in traced.opaque.items():
        layers = contains_layer(traced.model.get_submodule(name))
        kept = (
            "it stays as it is, its layers are replaced in place, each with a quantizer of its own;"
            " odd bit-widths and exports are refused"
            if layers
            else "it stays as it is; exports are refused"
        )
        notes.append(f"{name} cannot be traced ({why}): {kept}")
    return notes


def _notes(traced: Trace, body: list[fx.Node]) -> list[str]:
    called = {str(node.target): traced.module(node) for node in body if node.op == "call_module"}
    notes = [
        f"{name} ({type(module).__name__}) holds constants alone: all bit-widths share it"
        for name, module in called.items()
        if is_constant_norm(module)
    ]
    notes += [
        f"a number is taken from the size of the image at {place}: it holds for images of "
        f"{tuple(traced.input_shape[2:])}; others are refused when the network runs"
        for place in traced.fixed
    ]
    notes += [
        f"{node.name} ({node.target.__name__}) is a norm called as a function: all bit-widths of a "
        "branch share it"
        for node in body
        if node.op == "call_function" and node.target in _FUNCTIONAL_NORMS
    ]
    return notes
