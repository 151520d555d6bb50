"""The head: the mean of the branches as late as may be, then an 8-bit classifier."""

import operator

import torch
import torch.nn.functional as F
from torch import fx, nn

from brevitas_multiquant.core.power_of_two import EDGE_BITS
from brevitas_multiquant.profiles.finn.graph import (
    insert_before,
    is_call,
    module_of,
    source_of,
    swap_layers,
)
from brevitas_multiquant.profiles.finn.modules import (
    BranchMean,
    SwitchableFixedPoint,
    operand_bits,
)
from brevitas_multiquant.profiles.finn.operands import (
    ADDITIONS,
    is_average,
    quantize_operands,
)
from brevitas_multiquant.profiles.finn.signs import merge_is_signed, never_negative
from brevitas_multiquant.profiles.profile import Parts
from brevitas_multiquant.quant.layers import WEIGHTED
from brevitas_multiquant.rewrite.graph.trace import gives_tensors, is_tensor

_SUBTRACTIONS = {operator.sub, torch.sub, "sub"}
_SCALES_WITH_INPUT = (
    *(nn.ReLU, nn.LeakyReLU, nn.PReLU, nn.Identity, nn.Flatten, nn.Unflatten, nn.Dropout),
    *(nn.Dropout2d, nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d),
)
_SCALES_WITH_INPUT_CALLS = {
    *(torch.relu, F.relu, F.leaky_relu, torch.flatten, torch.mean, torch.sum, torch.amax),
    *(torch.squeeze, torch.unsqueeze, torch.reshape, torch.permute, torch.cat, torch.concat),
    *(F.max_pool2d, F.avg_pool2d, F.adaptive_avg_pool2d, F.adaptive_max_pool2d, F.dropout),
    operator.getitem,
    *("relu", "flatten", "mean", "sum", "amax", "view", "reshape", "squeeze", "unsqueeze"),
    *("permute", "transpose", "contiguous", "chunk", "split"),
}


def divide_sum(parts: Parts) -> None:
    """Make the sum of branches a mean, once on each path from the merge to where it matters.

    As late as the result is the same: a pool of the sum is branches times the pool of the mean, so
    that integers stay integers until the next quantizer; a layer, a norm or a sigmoid needs the
    mean itself.
    """
    if parts.config.merge != "mean" or not parts.merges:
        return
    head = parts.head
    sums = {source_of(head)}
    means: dict[fx.Node, fx.Node] = {}
    for node in list(head.graph.nodes):
        operands = [operand for operand in node.all_input_nodes if not _is_no_tensor(operand)]
        read = [operand for operand in operands if operand in sums]
        if not read or _is_no_tensor(node):
            continue
        if read == operands and _scales_with_input(head, node):
            sums.add(node)
            continue
        for operand in read:
            if operand in means:
                node.replace_input_with(operand, means[operand])
                continue
            name = f"branch_mean_{len(means)}" if means else "branch_mean"
            module = BranchMean(parts.branch_counts, parts.active)
            means[operand] = insert_before(head, node, operand, name, module)
    head.recompile()


def _is_no_tensor(node: fx.Node) -> bool:
    """Whether a node's value is a size, a shape or the like."""
    return node.op != "output" and not is_tensor(node) and not gives_tensors(node)


def _scales_with_input(head: fx.GraphModule, node: fx.Node) -> bool:
    """Whether a node gives n times as much for inputs n times as large, of every positive n."""
    if node.op == "call_module":
        return isinstance(module_of(head, node), _SCALES_WITH_INPUT)
    if node.target in ADDITIONS | _SUBTRACTIONS:  # not of a constant
        operands = node.all_input_nodes
        return is_call(node) and len(operands) == len(node.args) == 2 and not node.kwargs
    return is_call(node) and node.target in _SCALES_WITH_INPUT_CALLS


def quantize_head(parts: Parts) -> None:
    """8-bit weights of the head's layers, and 8-bit inputs in front of each.

    Where no merge has put the head's input on a grid, averages have quantizers as in a branch.
    """
    head = parts.head
    swap_layers(parts, head)
    edge = dict.fromkeys(parts.config.bits, EDGE_BITS)
    known = () if merge_is_signed(parts) else (source_of(head),)
    for node in list(head.graph.nodes):
        if not isinstance(module_of(head, node), WEIGHTED):
            continue
        (read,) = node.all_input_nodes
        quantizer = SwitchableFixedPoint(edge, not never_negative(head, read, known), parts.active)
        insert_before(head, node, read, f"input_quants.{node.target}", quantizer)
    if not parts.merges:
        operands = {bit: operand_bits(bit) for bit in parts.config.bits}
        quantize_operands(head, operands, parts, known=known)
    elif parts.config.revision > 1:
        quantize_operands(head, edge, parts, _sums_of_integers(head), known)
    head.recompile()


def _sums_of_integers(head: fx.GraphModule) -> set[fx.Node]:
    """Nodes whose values are the branches' integers, and sums of them, still of one scale."""
    exact = {source_of(head)}
    for node in head.graph.nodes:
        read = [operand for operand in node.all_input_nodes if not _is_no_tensor(operand)]
        quantized = isinstance(module_of(head, node), SwitchableFixedPoint)
        if quantized or (read and set(read) <= exact and _keeps_integers(head, node)):
            exact.add(node)
    return exact


def _keeps_integers(head: fx.GraphModule, node: fx.Node) -> bool:
    """Whether integers of one scale stay so: not averages, whose divisor may be any number."""
    falls = isinstance(module_of(head, node), (nn.LeakyReLU, nn.PReLU))
    return _scales_with_input(head, node) and not is_average(head, node) and not falls
