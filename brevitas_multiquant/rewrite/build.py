"""Acts 3 and 4, build and swap: graphs of stem, branches and head from the traced model."""

from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import fx, nn

from brevitas_multiquant.core.copying import copied
from brevitas_multiquant.core.panel import Panel
from brevitas_multiquant.errors import UnsupportedModelError
from brevitas_multiquant.nn.shared import SharedParameter
from brevitas_multiquant.nn.switchable import SwitchableNorm, exact_norm
from brevitas_multiquant.quant.layers import WEIGHTED, CodeLayer, weight_range
from brevitas_multiquant.quant.plain import AroundLayer
from brevitas_multiquant.quant.slices import make_slice
from brevitas_multiquant.rewrite.graph.kinds import is_norm
from brevitas_multiquant.rewrite.graph.paths import nodes_between
from brevitas_multiquant.rewrite.graph.trace import Trace
from brevitas_multiquant.rewrite.neighbours import NOWHERE, Between, sites_around
from brevitas_multiquant.rewrite.plan import Plan


def cut(traced: Trace, plan: Plan) -> tuple[fx.GraphModule, fx.GraphModule, fx.GraphModule]:
    """Stem, body and head of the traced model, with the author's module names.

    Raises:
        UnsupportedModelError: a part reads something else than what the one before it gives.
    """
    nodes = {node.name: node for node in traced.graph.nodes}
    inner = [tuple(nodes[name] for name in names) for names in (plan.stem_ends, plan.head_starts)]
    joints = ((traced.image,), *inner, traced.outputs)
    return tuple(  # type: ignore[return-value]
        _subgraph(traced, plan, starts, ends, part)
        for (starts, ends), part in zip(pairwise(joints), ("Stem", "Branch", "Head"), strict=True)
    )


def _subgraph(
    traced: Trace,
    plan: Plan,
    starts: tuple[fx.Node, ...],
    ends: tuple[fx.Node, ...],
    part: str,
) -> fx.GraphModule:
    graph, copies = fx.Graph(), {}
    for start in starts:
        copies[start] = graph.placeholder("x" if len(starts) == 1 else start.name)
        copies[start].meta = dict(start.meta)
    for node in nodes_between(starts, ends):
        if node.op == "placeholder":
            raise UnsupportedModelError(
                plan.model,
                [
                    f"the {part.lower()} reads {node.name} beside the output of "
                    f"{', '.join(start.name for start in starts)}"
                ],
            )
        copies[node] = graph.node_copy(node, lambda source: copies[source])
    given = tuple(copies[end] for end in ends)
    graph.output(given if len(given) > 1 else given[0])
    return fx.GraphModule(traced.model, graph, part)


def build_shared(part: fx.GraphModule, active: Panel) -> fx.GraphModule:
    """A float part that all bit-widths share: its own copy, norms evaluated exactly."""
    part = copied(part, {})
    for module in part.modules():
        exact_norm(module, active)
    return part


@dataclass(frozen=True)
class Fittings:
    """What a method puts into a body, in place of float modules.

    Args:
        layer: of a convolution or linear layer that reads a site, the one with weights of few bits.
        quantizer: a new activation quantizer of a site.
        norm: of a norm, the switched one; of the sites that it stands between.
    """

    layer: Callable[[nn.Module, str], nn.Module]
    quantizer: Callable[[str], nn.Module]
    norm: Callable[[nn.Module, Between], nn.Module]


def build_branch(body: fx.GraphModule, plan: Plan, fittings: Fittings) -> fx.GraphModule:
    """One branch: 2-bit layers, a quantizer for each tensor they read, switchable norms.

    Args:
        body: the float body; not changed.
        plan: the rewrite's decisions.
        fittings: of the method, for the bit-widths at which this branch runs.
    """
    branch = copied(body, _weights_of_layers(body, plan))
    nodes = {node.name: node for node in branch.graph.nodes}
    readers = [[nodes[name] for name in names] for names in plan.sites.values()]
    sites = _input_sites(readers)
    for nodes_of_site in readers:
        _insert_quantizer(branch, nodes_of_site, fittings, sites)
    between = sites_around(branch.graph, sites)
    modules = dict(branch.named_modules())
    for name in {str(n.target) for n in branch.graph.nodes if n.op == "call_module"}:
        if name in sites:
            _swap(branch, name, fittings.layer(modules[name], sites[name]))
        elif is_norm(modules.get(name)):
            _swap(branch, name, fittings.norm(modules[name], between[name]))
    _swap_untraced_layers(branch, plan, fittings)
    branch.recompile()
    return branch


def _weights_of_layers(body: nn.Module, plan: Plan) -> dict[int, nn.Parameter]:
    """Not worth a copy: layers make their own, but for those that stay float."""
    stays = {layer.name for layer in plan.layers if layer.treatment == "float"}
    layers = (
        module
        for name, module in body.named_modules()
        if isinstance(module, WEIGHTED) and name not in stays
    )
    return {id(parameter): parameter for layer in layers for parameter in layer.parameters()}


def _input_sites(readers: list[list[fx.Node]]) -> dict[str, str]:
    """Layer -> the site that it reads.

    A layer that is called on several tensors has one output scale, so they are one site.

    Args:
        readers: for each tensor, the layers that read it.
    """
    site_of: dict[str, str] = {}
    for nodes in readers:
        layers = [str(node.target) for node in nodes]
        known = {site_of[layer] for layer in layers if layer in site_of}
        joined = [layer for layer, site in site_of.items() if site in known]
        site = site_of[joined[0]] if joined else layers[0]
        site_of |= dict.fromkeys([*joined, *layers], site)
    return site_of


def _insert_quantizer(
    branch: fx.GraphModule, readers: list[fx.Node], fittings: Fittings, sites: Mapping[str, str]
) -> None:
    first = str(readers[0].target)
    target = f"input_quants.{first}"
    while _has_submodule(branch, target):  # a layer that is called on several tensors
        target += "_again"
    branch.add_submodule(target, fittings.quantizer(sites[first]))
    source = readers[0].all_input_nodes[0]
    with branch.graph.inserting_after(source):
        quantizer = branch.graph.call_module(target, (source,))
    for reader in readers:
        reader.replace_input_with(source, quantizer)


def _has_submodule(root: nn.Module, name: str) -> bool:
    try:
        root.get_submodule(name)
    except AttributeError:
        return False
    return True


def _swap_untraced_layers(branch: nn.Module, plan: Plan, fittings: Fittings) -> None:
    """In modules that cannot be traced: each layer with a quantizer of its own, under any name."""
    modules = dict(branch.named_modules(remove_duplicate=False))
    quantized: dict[nn.Module, nn.Module] = {}
    for name in plan.untraced_layers:
        layer = modules[name]
        if layer in quantized:  # it has another name
            continue
        parts = {"input_quant": fittings.quantizer(name), "layer": fittings.layer(layer, name)}
        quantized[layer] = AroundLayer(OrderedDict(parts))
    for name in plan.norms:
        if isinstance(branch.get_submodule(name), SwitchableNorm):
            continue
        quantized[modules[name]] = fittings.norm(modules[name], NOWHERE)
    for name, module in modules.items():
        if module in quantized:
            _swap(branch, name, quantized[module])


def _swap(root: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, leaf = name.rpartition(".")
    setattr(root.get_submodule(parent), leaf, module)


def share_parameters(half: fx.GraphModule, whole: fx.GraphModule) -> fx.GraphModule:
    """The half branch as a slice of the whole one: only norms and activation ranges are its own.

    Args:
        half: of `build_branch` on the narrow body; its layers are changed in place.
        whole: the branch that keeps the parameters.
    """
    modules = dict(half.named_modules())
    for name, module in modules.items():
        if isinstance(module, CodeLayer):
            make_slice(module, whole.get_submodule(name))  # type: ignore[arg-type]
    for node in list(half.graph.nodes):
        if node.op == "get_attr":
            _share_parameter(half, whole, node)
    return fx.GraphModule(half, half.graph, "HalfBranch")  # without what is no longer used


def _share_parameter(half: fx.GraphModule, whole: fx.GraphModule, node: fx.Node) -> None:
    path, _, name = str(node.target).rpartition(".")
    owner = whole.get_submodule(path)
    if name in owner._parameters:
        half.add_submodule(f"shared_{node.name}", SharedParameter(owner, name))
        node.op, node.target = "call_module", f"shared_{node.name}"


RANGE_SPREAD = 0.02
"""How much wider each branch's weight ranges start than the one's before, where weights agree."""


def spread_weight_ranges(branch: nn.Module, index: int) -> None:
    """Start the weight ranges of equal branches a little apart.

    Branches with equal weights and ranges that run at the same bit-widths get equal gradients for
    ever; this tells them apart and leaves the given weights as they are.
    """
    for module in branch.modules():
        if isinstance(module, CodeLayer):
            learned = weight_range(module)
            learned.spread = 1 + RANGE_SPREAD * index
            with torch.no_grad():
                learned.set_from(module.effective_weight())


def shuffle_weights(branch: nn.Module, seed: int) -> None:
    """Permute the entries of each weight tensor: another draw of the author's own initialisation.

    Makes branches independent draws where there are no trained weights to keep.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in branch.modules():
            if isinstance(module, WEIGHTED):
                order = torch.randperm(module.weight.numel(), generator=generator)
                flat = module.weight.reshape(-1)
                module.weight.copy_(flat[order.to(flat.device)].view_as(module.weight))
