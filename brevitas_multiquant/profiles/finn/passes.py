"""The ``finn`` profile: everything quantized that hardware needs, so that training sees it.

A change of the network that the paper's profile builds, not another network:

* stem: the image in 8 bits, 8-bit weights, and the first activation quantizer, which the paper has
  in every branch, once, before the branches part;
* branches: both operands of an addition, and what is averaged over positions, pass a fixed-point
  quantizer; a half branch reads the first channels of the stem's codes and has quantizers of its
  own, as it has its own norms;
* merge: branch outputs pass one shared quantizer and are added as integers; a half branch counts
  as one where the paper's profile takes the mean, and so it does here;
* head: the classifier's input and weights in 8 bits.
"""

import operator
from collections.abc import Container, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from brevitas_multiquant.core.panel import Dial
from brevitas_multiquant.core.power_of_two import EDGE_BITS
from brevitas_multiquant.core.selection import bits_of_uses
from brevitas_multiquant.nn.network import MultiQuantNet
from brevitas_multiquant.nn.switchable import SwitchableQuantizer
from brevitas_multiquant.profiles.finn.modules import (
    BranchMean,
    CodesToValues,
    FixedPointQuantizer,
    QuantizedMerge,
    QuantizedSum,
    SwitchableFixedPoint,
    operand_bits,
)
from brevitas_multiquant.profiles.finn.quantizers import fixed_point_layer
from brevitas_multiquant.quant.layers import WEIGHTED
from brevitas_multiquant.rewrite.graph.trace import gives_tensors, is_tensor, shape_of

_ADDITIONS = {operator.add, torch.add, "add"}
_SUBTRACTIONS = {operator.sub, torch.sub, "sub"}
_NEVER_NEGATIVE = (nn.ReLU, nn.ReLU6, nn.Sigmoid, nn.Hardsigmoid)
_NEVER_NEGATIVE_CALLS = {torch.relu, F.relu, F.relu6, "relu"}
_KEEPS_SIGN = (
    nn.MaxPool2d,
    nn.AvgPool2d,
    nn.AdaptiveAvgPool2d,
    nn.Flatten,
    nn.Dropout,
    nn.Dropout2d,
    BranchMean,
)
_KEEPS_SIGN_CALLS = {
    *(torch.flatten, torch.mean, F.max_pool2d, F.avg_pool2d, F.adaptive_avg_pool2d),
    *("flatten", "mean", "view", "reshape", "squeeze"),
}
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
_AVERAGES = (nn.AvgPool2d, nn.AdaptiveAvgPool2d)
_AVERAGE_CALLS = {torch.mean, "mean", F.adaptive_avg_pool2d, F.avg_pool2d}


def quantize_for_finn(net: MultiQuantNet) -> MultiQuantNet:
    """Quantize in place what the paper's profile leaves in float.

    Args:
        net: as the paper's profile builds it.

    Returns:
        The same network.
    """
    first = _quantize_stem(net)
    positive = [_quantize_branch(net, branch, bits, first) for branch, bits in _branches(net)]
    branches = {bit: len(chosen) for bit, chosen in net.selection.items()}
    signed = not all(positive)
    net.merge = QuantizedMerge(net.config.merge, branches, signed, net._active)
    _quantize_head(net, signed, branches)
    net.plan.layers = [
        layer if layer.part == "branch" else replace(layer, treatment="8 bits, shared")
        for layer in net.plan.layers
    ]
    return net


def _quantize_stem(net: MultiQuantNet) -> SwitchableQuantizer:
    stem: Any = net.stem
    image, end = _ends(stem)
    if end is not image:  # else the network has no stem of its own
        _swap_layers(net, stem)
        _insert_after(stem, image, "image_quant", FixedPointQuantizer(EDGE_BITS, True, net._active))
    first = SwitchableQuantizer.create(net.bits, net._active, _first_dial(net))
    _insert_after(stem, end, "first_quant", first)
    stem.recompile()
    return first


def _first_dial(net: MultiQuantNet) -> Dial:
    """Of the quantizer that the one in the stem takes the place of, if there is one."""
    branch: Any = net.branches[0]
    modules = dict(branch.named_modules())
    readers = _first_channels(_ends(branch)[0]).users
    own = [modules[str(n.target)] for n in readers if _calls(modules, n, SwitchableQuantizer)]
    return own[0].dial if own else net._active.dial("first_quant")


def _quantize_branch(
    net: MultiQuantNet, branch: Any, bits: Sequence[int], first: SwitchableQuantizer
) -> bool:
    """Whether the branch's output is never negative."""
    _use_first_quantizer(branch, _first_channels(_ends(branch)[0]), first)
    operands = {bit: operand_bits(bit) for bit in bits}
    for node in list(branch.graph.nodes):
        if _is_addition(node):
            _replace_by_module(branch, node, QuantizedSum(operands, True, net._active))
        elif _is_average(branch, node):
            (averaged,) = node.all_input_nodes
            signed = not _never_negative(branch, averaged)
            quantizer = SwitchableFixedPoint(operands, signed, net._active)
            _insert_before(branch, node, averaged, f"average_quants.{node.name}", quantizer)
    branch.recompile()
    return _never_negative(branch, _ends(branch)[1])


def _use_first_quantizer(branch: Any, source: fx.Node, first: SwitchableQuantizer) -> None:
    """Layers read the stem's codes as they are, everybody else the values they stand for."""
    readers = list(source.users)
    modules = dict(branch.named_modules())
    own = [reader for reader in readers if _calls(modules, reader, SwitchableQuantizer)]
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


def _quantize_head(net: MultiQuantNet, signed: bool, branches: dict[int, int]) -> None:
    head: Any = net.head
    source, _ = _ends(head)
    edge = dict.fromkeys(net.bits, EDGE_BITS)
    _swap_layers(net, head)
    if net.config.merge == "mean":
        _divide_sum(net, head, source, branches)
    modules = dict(head.named_modules())
    for node in list(head.graph.nodes):
        if not _calls(modules, node, WEIGHTED):
            continue
        (read,) = node.all_input_nodes
        may_be_negative = not _never_negative(head, read, () if signed else (source,))
        quantizer = SwitchableFixedPoint(edge, may_be_negative, net._active)
        _insert_before(head, node, read, f"input_quants.{node.target}", quantizer)
    head.recompile()


def _divide_sum(net: MultiQuantNet, head: Any, source: fx.Node, branches: dict[int, int]) -> None:
    """Make the sum of branches a mean, once on each path from the merge to where it matters.

    As late as the result is the same: a pool of the sum is branches times the pool of the mean, so
    that integers stay integers until the next quantizer; a layer, a norm or a sigmoid needs the
    mean itself.
    """
    sums = {source}
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
            module = BranchMean(branches, net._active)
            means[operand] = _insert_before(head, node, operand, name, module)


def _is_no_tensor(node: fx.Node) -> bool:
    """Whether a node's value is a size, a shape or the like."""
    return node.op != "output" and not is_tensor(node) and not gives_tensors(node)


def _scales_with_input(part: Any, node: fx.Node) -> bool:
    """Whether a node gives n times as much for inputs n times as large, of every positive n."""
    if node.op == "call_module":
        return isinstance(part.get_submodule(str(node.target)), _SCALES_WITH_INPUT)
    called = node.op in ("call_function", "call_method")
    if node.target in _ADDITIONS | _SUBTRACTIONS:  # not of a constant
        return called and len(node.all_input_nodes) == len(node.args) == 2 and not node.kwargs
    return called and node.target in _SCALES_WITH_INPUT_CALLS


def _ends(part: Any) -> tuple[fx.Node, fx.Node]:
    """What a part's graph reads and returns."""
    nodes = list(part.graph.nodes)
    source = next(node for node in nodes if node.op == "placeholder")
    return source, part.graph.output_node().args[0]


def _first_channels(source: fx.Node) -> fx.Node:
    """What a half branch reads of the stem's output; the output itself in a whole one."""
    (reader, *others) = source.users
    cut = not others and reader.op == "call_method" and reader.target == "narrow"
    return reader if cut else source


def _branches(net: MultiQuantNet) -> Iterator[tuple[nn.Module, tuple[int, ...]]]:
    """Every branch, whole or half, with the bit-widths at which it runs."""
    for use, bits in bits_of_uses(net.selection).items():
        yield net.branch_of(use), bits


def _swap_layers(net: MultiQuantNet, part: nn.Module) -> None:
    """8-bit layers in place of float ones of a kind that hardware has."""
    for name, module in list(part.named_modules()):
        quantized = fixed_point_layer(module, net._active)
        if quantized is not None:
            parent, _, leaf = name.rpartition(".")
            setattr(part.get_submodule(parent), leaf, quantized)


def _calls(modules: dict[str, nn.Module], node: fx.Node, kinds: Any) -> bool:
    return node.op == "call_module" and isinstance(modules[str(node.target)], kinds)


def _is_addition(node: fx.Node) -> bool:
    operands = node.all_input_nodes
    return (
        node.op in ("call_function", "call_method")
        and node.target in _ADDITIONS
        and len(operands) == len(node.args) == 2
        and not node.kwargs
        and is_tensor(node)
        and all(operand.op != "get_attr" for operand in operands)
    )


def _is_average(part: Any, node: fx.Node) -> bool:
    """Whether a node averages over more than one position."""
    if node.op == "call_module":
        average = isinstance(part.get_submodule(str(node.target)), _AVERAGES)
    else:
        average = node.op in ("call_function", "call_method") and node.target in _AVERAGE_CALLS
    if not average:
        return False
    (source,) = node.all_input_nodes[:1]
    one_position = is_tensor(source) and set(shape_of(source)[2:]) <= {1}
    return not one_position


def _never_negative(part: Any, node: fx.Node, known: Container[fx.Node] = ()) -> bool:
    """Whether a node's values cannot be negative, given that those of ``known`` are not."""
    if node in known:
        return True
    if node.op == "call_module":
        module = part.get_submodule(str(node.target))
        keeps = isinstance(module, _KEEPS_SIGN)
        if isinstance(module, SwitchableFixedPoint):
            keeps = not isinstance(module, QuantizedSum)
        never = isinstance(module, _NEVER_NEGATIVE)
    else:
        keeps, never = node.target in _KEEPS_SIGN_CALLS, node.target in _NEVER_NEGATIVE_CALLS
    return never or (keeps and _never_negative(part, node.all_input_nodes[0], known))


def _insert_after(part: Any, node: fx.Node, name: str, module: nn.Module) -> None:
    """Everybody who reads ``node`` reads what the module makes of it."""
    part.add_submodule(name, module)
    with part.graph.inserting_after(node):
        inserted = part.graph.call_module(name, (node,))
    node.replace_all_uses_with(inserted, lambda user: user is not inserted)
    inserted.meta = dict(node.meta)


def _insert_before(
    part: Any, reader: fx.Node, source: fx.Node, name: str, module: nn.Module
) -> fx.Node:
    """One reader of ``source`` reads what the module makes of it."""
    part.add_submodule(name, module)
    with part.graph.inserting_before(reader):
        inserted = part.graph.call_module(name, (source,))
    inserted.meta = dict(source.meta)
    reader.replace_input_with(source, inserted)
    return inserted


def _replace_by_module(part: Any, node: fx.Node, module: nn.Module) -> None:
    name = f"sums.{node.name}"
    part.add_submodule(name, module)
    node.op, node.target = "call_module", name
