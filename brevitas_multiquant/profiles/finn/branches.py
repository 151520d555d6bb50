"""The branches: they read the stem's codes; what is added or averaged is on a fixed-point grid."""

import operator
from collections.abc import Container, Sequence

import torch
import torch.nn.functional as F
from torch import fx, nn

from brevitas_multiquant.core.panel import Panel
from brevitas_multiquant.nn.switchable import SwitchableQuantizer
from brevitas_multiquant.profiles.finn.graph import (
    call_instead,
    first_channels,
    insert_before,
    is_call,
    module_of,
    source_of,
)
from brevitas_multiquant.profiles.finn.modules import (
    CodesToValues,
    QuantizedSum,
    SwitchableFixedPoint,
    operand_bits,
)
from brevitas_multiquant.profiles.finn.signs import never_negative
from brevitas_multiquant.profiles.finn.stem import FIRST
from brevitas_multiquant.profiles.profile import Parts
from brevitas_multiquant.rewrite.graph.trace import is_tensor, shape_of

ADDITIONS = {operator.add, torch.add, "add"}
_AVERAGES = (nn.AvgPool2d, nn.AdaptiveAvgPool2d)
_AVERAGE_CALLS = {torch.mean, "mean", F.adaptive_avg_pool2d, F.avg_pool2d}


def quantize_branches(parts: Parts) -> None:
    """Every branch reads the stem's codes, and has quantizers at its sums and averages."""
    first = parts.stem.get_submodule(FIRST)
    assert isinstance(first, SwitchableQuantizer)
    for branch, bits in parts.branches_and_bits():
        _read_codes(branch, first_channels(source_of(branch)), first)
        _quantize_operands(branch, bits, parts.active)
        branch.recompile()


def _read_codes(branch: fx.GraphModule, source: fx.Node, first: SwitchableQuantizer) -> None:
    """Layers read the stem's codes as they are, everybody else the values they stand for."""
    readers = list(source.users)
    own = [node for node in readers if isinstance(module_of(branch, node), SwitchableQuantizer)]
    others = [reader for reader in readers if reader not in own]
    if others:
        branch.add_submodule("stem_values", CodesToValues(first))
        with branch.graph.inserting_after(source):
            values = branch.graph.call_module("stem_values", (source,))
        for reader in others:
            reader.replace_input_with(source, values)
    for reader in own:
        reader.replace_all_uses_with(source)
        branch.graph.erase_node(reader)
        branch.delete_submodule(str(reader.target))


def _quantize_operands(branch: fx.GraphModule, bits: Sequence[int], active: Panel) -> None:
    operands = {bit: operand_bits(bit) for bit in bits}
    for node in list(branch.graph.nodes):
        if _is_addition(node):
            call_instead(node, branch, f"sums.{node.name}", QuantizedSum(operands, True, active))
        elif is_average(branch, node):
            quantize_average(branch, node, bits, active)


def quantize_average(
    part: fx.GraphModule,
    node: fx.Node,
    bits: Sequence[int],
    active: Panel,
    known: Container[fx.Node] = (),
) -> None:
    """What a node averages over positions passes a fixed-point quantizer.

    Args:
        part: a branch, or a head whose input no merge has quantized; changed in place.
        node: for which `is_average` holds.
        bits: at which the part runs.
        active: the network's state.
        known: nodes whose values are never negative.
    """
    (averaged,) = node.all_input_nodes
    signed = not never_negative(part, averaged, known)
    operands = {bit: operand_bits(bit) for bit in bits}
    quantizer = SwitchableFixedPoint(operands, signed, active)
    insert_before(part, node, averaged, f"average_quants.{node.name}", quantizer)


def _is_addition(node: fx.Node) -> bool:
    operands = node.all_input_nodes
    return (
        is_call(node)
        and node.target in ADDITIONS
        and len(operands) == len(node.args) == 2
        and not node.kwargs
        and is_tensor(node)
        and all(operand.op != "get_attr" for operand in operands)
    )


def is_average(part: fx.GraphModule, node: fx.Node) -> bool:
    """Whether a node averages over more than one position."""
    called = is_call(node) and node.target in _AVERAGE_CALLS
    if not called and not isinstance(module_of(part, node), _AVERAGES):
        return False
    (source,) = node.all_input_nodes[:1]
    one_position = is_tensor(source) and set(shape_of(source)[2:]) <= {1}
    return not one_position
