"""The walk over the network of one bit-width, in order of execution."""

import math
import operator
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import fx, nn

from brevitas_multiquant.core.precision import described
from brevitas_multiquant.errors import FinnMappingError
from brevitas_multiquant.export.finn.integer_graph import HostSide, IntegerGraph
from brevitas_multiquant.export.finn.lower.builder import NOT_FINN, Builder
from brevitas_multiquant.export.finn.lower.calls import call
from brevitas_multiquant.export.finn.lower.joins import add_up
from brevitas_multiquant.export.finn.lower.layout import LAYOUTS, Laid, lay, run, settle
from brevitas_multiquant.export.finn.lower.registry import apply_rule, unknown
from brevitas_multiquant.export.finn.lower.values import Finish, MeanOfSum, Value, divisor_of
from brevitas_multiquant.nn.merge import OnlyOutput
from brevitas_multiquant.nn.subnet import Subnet
from brevitas_multiquant.profiles.finn.modules import Divide, PlainMerge
from brevitas_multiquant.quant.plain import OutputScale, ScaleShift


def lower(subnet: Subnet, branch_names: Sequence[str], input_shape: Sequence[int]) -> IntegerGraph:
    """The integer network that computes what ``subnet`` computes, to the bit.

    Args:
        subnet: of `brevitas_multiquant.extract_subnet`, of a network of the profile ``"finn"``.
        branch_names: what to call its branches in messages.
        input_shape: (N, C, H, W).

    Raises:
        FinnMappingError: with every reason found.
    """
    builder = Builder()
    with torch.no_grad():
        logits = _finished(_network(builder, subnet, branch_names, input_shape))
        _check_logits(builder, logits)
        if builder.problems:
            raise FinnMappingError(described(subnet.setting), builder.problems)
        image = builder.image
        assert image is not None and logits.stream is not None
        host = HostSide(image.scale, image.code_range, *logits.host_side())
    return IntegerGraph(subnet.bits, image.stream, logits.stream, host, builder.layers)


def problems_of(
    subnet: Subnet, branch_names: Sequence[str], input_shape: Sequence[int]
) -> list[tuple[str, str]]:
    """Every (module path, what is wrong and what to do) that keeps a subnet from hardware."""
    try:
        lower(subnet, branch_names, input_shape)
    except FinnMappingError as error:
        return error.problems
    return []


def _finished(logits: Value) -> Value:
    """A sigmoid behind the last layer is the processor's work, as a softmax is."""
    factors = logits.factors()
    if not factors or not isinstance(factors[-1], nn.Sigmoid):
        return logits
    sigmoid = Finish("sigmoid")
    functions = (sigmoid if one is factors[-1] else one for one in logits.functions)
    return replace(logits, functions=tuple(functions))


def _check_logits(builder: Builder, logits: Value) -> None:
    """What is left to the processor is a factor, a divisor, a bias and a softmax."""
    host = (OutputScale, Finish, MeanOfSum, Divide)
    factors = [f for f in logits.factors() if not isinstance(f, host)]
    divisions = [f for f in logits.factors() if isinstance(f, (MeanOfSum, Divide))]
    if sum(math.frexp(divisor_of(f))[0] != 0.5 for f in divisions) > 1:
        factors = [*divisions]  # two divisions that round are none by the product
    if logits.known and (factors or logits.moves or logits.parts):
        name = _name_of(factors[-1]) if factors else "an operation"
        advice = f"{name} behind the last layer: leave it to those who read the logits"
        builder.problem("head", advice, logits)


def _name_of(function: Any) -> str:
    if isinstance(function, ScaleShift):
        return "a norm"
    return type(function).__name__ if isinstance(function, nn.Module) else "arithmetic"


def _network(
    builder: Builder, subnet: Subnet, branch_names: Sequence[str], input_shape: Sequence[int]
) -> Value:
    """The value of the logits."""
    image = Value(None, tuple(input_shape[1:]))  # type: ignore[arg-type]
    if len(image.shape) != 3:
        advice = "videos (N, C, T, H, W) have no dataflow layers: expected images (N, C, H, W)"
        return builder.problem("image", advice, image)
    features = _part(builder, "stem", subnet.stem, image)
    outputs = [
        _part(builder, name, branch, features)
        for name, branch in zip(branch_names, subnet.branches, strict=True)
    ]
    merged = _merge(builder, subnet.merge, branch_names, outputs)
    return _part(builder, "head", subnet.head, merged)


def _merge(
    builder: Builder, merge: nn.Module, names: Sequence[str], outputs: Sequence[Value]
) -> Value:
    """Branch outputs as one value."""
    if isinstance(merge, PlainMerge):
        return add_up(builder, "merge", merge.sum, outputs, names)
    if isinstance(merge, OnlyOutput):
        return outputs[0]
    return builder.problem("merge", NOT_FINN, outputs[0])


def _part(builder: Builder, prefix: str, part: Any, source: Value) -> Value:
    """Walk the graph of stem, branch or head."""
    values: dict[fx.Node, Any] = {}
    for node in part.graph.nodes:
        where = f"{prefix}.{node.target if node.op == 'call_module' else node.name}"
        args, kwargs = (
            fx.node.map_arg(given, lambda read: values[read]) for given in (node.args, node.kwargs)
        )
        if node.op == "placeholder":
            values[node] = source
        elif node.op == "get_attr":
            values[node] = operator.attrgetter(str(node.target))(part)
        elif node.op == "output":
            return settle(builder, where, args[0])
        elif node.op == "call_module":
            module = part.get_submodule(str(node.target))
            values[node] = _of_module(builder, where, module, args)
        else:
            values[node] = call(builder, where, node, args, kwargs)
    raise AssertionError("a graph without an output")


def _of_module(builder: Builder, where: str, module: nn.Module, args: Sequence[Any]) -> Any:
    """What a module makes of tensors; of constants alone, a constant."""
    tensors = [one for one in args if isinstance(one, (Value, Laid))]
    if not tensors:
        return module(*args)
    if isinstance(module, LAYOUTS) and len(args) == 1:
        return run(module, lay(args[0]))
    read = [settle(builder, where, one) for one in tensors]
    if len(tensors) < len(args):
        return unknown(builder, where, type(module).__name__, read[0])
    return apply_rule(builder, where, module, read)
