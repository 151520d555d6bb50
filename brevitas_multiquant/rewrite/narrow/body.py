"""A narrower body: the first channels of every layer and norm, constants scaled to match."""

from fractions import Fraction
from typing import Any

import torch
from torch import Tensor, fx, nn

from brevitas_multiquant.core.copying import copied
from brevitas_multiquant.core.output_structure import tensors_of
from brevitas_multiquant.errors import UnsupportedModelError
from brevitas_multiquant.quant.geometry import is_transposed
from brevitas_multiquant.quant.layers import WEIGHTED
from brevitas_multiquant.rewrite.graph.channels import is_dense
from brevitas_multiquant.rewrite.graph.kinds import has_parameters, is_constant_norm
from brevitas_multiquant.rewrite.graph.trace import shape_of
from brevitas_multiquant.rewrite.narrow.scaling import change_at
from brevitas_multiquant.rewrite.narrow.widths import WHOLE, HalfPlan


def narrow(body: fx.GraphModule, plan: HalfPlan, model: str) -> fx.GraphModule:
    """The half branch as a float body: reads what the whole one reads, gives the same shape.

    Args:
        body: the whole float body; not changed.
        plan: of `rewrite.narrow.widths.plan_half`.
        model: its class name, for errors.

    Raises:
        UnsupportedModelError: the author's code does not run with fewer channels.
    """
    half = copied(body, {})
    called = {str(n.target): n for n in body.graph.nodes if n.op == "call_module"}
    for target, node in called.items():
        _narrow_module(half.get_submodule(target), node, plan)
    for node in list(half.graph.nodes):
        if node.op == "placeholder" and plan.share(node, 1) < WHOLE:
            _cut_input(node, plan)
        if node.name in plan.scaling.repairs:
            _repair(node, plan)
    half.recompile()
    _check_shape(half, model)
    return half


def _cut_input(image: fx.Node, plan: HalfPlan) -> None:
    kept = int(shape_of(image)[1] * plan.share(image, 1))
    with image.graph.inserting_after(image):
        first = image.graph.call_method("narrow")
    image.replace_all_uses_with(first)
    first.args = (image, 1, 0, kept)


def _repair(node: fx.Node, plan: HalfPlan) -> None:
    repair, share = plan.scaling.repairs[node.name], plan.share_of_set(node)
    structure: Any = (node.args, node.kwargs)
    for path in repair.literals:
        structure = change_at(structure, path, lambda literal: int(literal * share))
    node.args, node.kwargs = structure
    by_name = {source.name: source for source in node.all_input_nodes}
    for name, dim in repair.constants:
        constant = by_name[name]
        kept = int(shape_of(constant)[dim] * share)
        with node.graph.inserting_before(node):
            first = node.graph.call_method("narrow", (constant, dim, 0, kept))
        node.replace_input_with(constant, first)


def _narrow_module(module: nn.Module, node: fx.Node, plan: HalfPlan) -> None:
    if isinstance(module, WEIGHTED):
        _narrow_layer(module, *plan.layer_shares(module, node))
    elif has_parameters(module) or is_constant_norm(module):
        source = node.all_input_nodes[0]
        for dim in plan.scaling.dims[source.name]:
            size = shape_of(source)[dim]
            _narrow_parameters(module, size, int(size * plan.share(source, dim)))


def _narrow_layer(layer: Any, reads: Fraction, gives: Fraction) -> None:
    if is_transposed(layer):
        _narrow_transposed(layer, reads, gives)
        return
    outputs = int(layer.weight.shape[0] * gives)
    per_group = int(layer.weight.shape[1] * (reads if is_dense(layer) else WHOLE))
    for name, parameter in list(layer.named_parameters(recurse=False)):
        first = parameter[:outputs] if name != "weight" else parameter[:outputs, :per_group]
        setattr(layer, name, _parameter_like(parameter, first))
    if isinstance(layer, nn.Linear):
        layer.in_features, layer.out_features = per_group, outputs
    else:
        layer.groups = int(layer.groups * gives) if not is_dense(layer) else 1
        layer.in_channels, layer.out_channels = per_group * layer.groups, outputs


def _narrow_transposed(layer: Any, reads: Fraction, gives: Fraction) -> None:
    """Its weights are (inputs, outputs of a group, ...)."""
    dense = is_dense(layer)
    layer.groups = 1 if dense else int(layer.groups * gives)
    inputs = int(layer.in_channels * (reads if dense else gives))
    per_group = int(layer.weight.shape[1] * (gives if dense else WHOLE))
    layer.in_channels, layer.out_channels = inputs, per_group * layer.groups
    for name, parameter in list(layer.named_parameters(recurse=False)):
        weight = name == "weight"
        first = parameter[:inputs, :per_group] if weight else parameter[: layer.out_channels]
        setattr(layer, name, _parameter_like(parameter, first))


_GROUPS = ("num_groups", "groups")


def _narrow_parameters(module: nn.Module, size: int, kept: int) -> None:
    """Cut whatever a norm holds for each of ``size`` channels down to the first ``kept``."""
    for part in module.modules():
        for name, tensor in [*part._parameters.items(), *part._buffers.items()]:
            if tensor is None or size not in tensor.shape:
                continue
            first = tensor.narrow(tuple(tensor.shape).index(size), 0, kept)
            if name in part._parameters:
                part._parameters[name] = _parameter_like(tensor, first)
            else:
                part._buffers[name] = first.detach().clone()
        for name, value in list(vars(part).items()):
            if name in _GROUPS and isinstance(value, int):
                groups = min(value, kept)
                setattr(part, name, next(g for g in range(groups, 0, -1) if kept % g == 0))
            elif value in (size, (size,), [size]) and not isinstance(value, bool):
                setattr(part, name, kept if value == size else type(value)([kept]))


def _parameter_like(parameter: Tensor, values: Tensor) -> nn.Parameter:
    return nn.Parameter(values.detach().clone(), requires_grad=parameter.requires_grad)


def _check_shape(half: fx.GraphModule, model: str) -> None:
    """The widths were found by running the graph wider; this runs it as narrow as it now is."""
    read = [node for node in half.graph.nodes if node.op == "placeholder"]
    given = half.graph.output_node().args[0]
    tensors = {**dict(half.named_parameters()), **dict(half.named_buffers())}
    on_meta = {name: tensor.to("meta") for name, tensor in tensors.items()}
    dtype = next(half.parameters()).dtype
    pairs = tuple(
        torch.empty((2, *shape_of(node)[1:]), dtype=dtype, device="meta") for node in read
    )
    try:
        with torch.no_grad():
            found = torch.func.functional_call(half, on_meta, pairs)
    except (RuntimeError, ValueError, IndexError) as error:
        raise UnsupportedModelError(
            model,
            [
                "odd bit-widths need a half branch: with fewer channels the model fails "
                f"({str(error).partition(chr(10))[0]}); use even bit-widths"
            ],
        ) from error
    results = given if isinstance(given, (tuple, list)) else (given,)
    for tensor, node in zip(tensors_of(found), results, strict=True):
        assert isinstance(node, fx.Node)
        assert tensor.shape[1:] == shape_of(node)[1:]
