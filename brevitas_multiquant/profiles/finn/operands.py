"""Quantizers at sums, products and averages, which hardware makes of integers."""

import operator
from collections.abc import Collection, Container
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from brevitas_multiquant.profiles.finn.graph import call_instead, insert_before, is_call, module_of
from brevitas_multiquant.profiles.finn.modules import (
    QuantizedProduct,
    QuantizedSum,
    SwitchableFixedPoint,
)
from brevitas_multiquant.profiles.finn.signs import never_negative
from brevitas_multiquant.profiles.profile import Parts
from brevitas_multiquant.rewrite.graph.trace import is_tensor, shape_of

ADDITIONS = {operator.add, torch.add, "add", operator.iadd, "add_"}
PRODUCTS = {operator.mul, torch.mul, torch.multiply, "mul", operator.imul, "mul_"}
_AVERAGES = (nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AvgPool1d, nn.AdaptiveAvgPool1d)
_AVERAGE_CALLS = {torch.mean, "mean", F.adaptive_avg_pool2d, F.avg_pool2d}
_FUNCTION_MODULES = (
    *(nn.ReLU, nn.ReLU6, nn.Hardtanh, nn.LeakyReLU, nn.Sigmoid, nn.Hardsigmoid, nn.Tanh),
    *(nn.Softplus, nn.Identity),
)
_FUNCTIONS = {
    *(torch.relu, F.relu, F.relu6, F.hardtanh, torch.sigmoid, F.sigmoid, F.hardsigmoid),
    *(torch.tanh, F.tanh, F.softplus, torch.clamp),
    *("relu", "sigmoid", "tanh", "clamp", "clip"),
    *(operator.add, operator.mul, operator.sub, operator.truediv, "add", "mul", "sub", "div"),
}
"""Of single numbers; additions and the like where the other operand is a number."""


def quantize_operands(
    part: fx.GraphModule,
    bits_of: dict[int, int],
    parts: Parts,
    exact: Collection[fx.Node] = (),
    known: Container[fx.Node] = (),
) -> None:
    """Quantizers at a part's sums, products and averages.

    Args:
        part: stem, branch or head; its graph is changed in place.
        bits_of: bit-width of the network -> bits of the integers.
        parts: of the network.
        exact: nodes whose values are integers of one scale as they are.
        known: nodes whose values are never negative.
    """
    for node in list(part.graph.nodes):
        computed = parts.config.revision == 1 or all(map(_reads_image, node.all_input_nodes))
        if computed and _joins(node, ADDITIONS) and not set(node.all_input_nodes) <= set(exact):
            total = QuantizedSum(bits_of, True, parts.active)
            call_instead(node, part, f"sums.{node.name}", total)
        elif computed and parts.config.revision > 1 and _joins(node, PRODUCTS):
            if not _is_one_function(part, node):
                _multiply(part, node, bits_of, parts, known)
        elif is_average(part, node) and node.all_input_nodes[0] not in exact:
            averaged = node.all_input_nodes[0]
            signed = not never_negative(part, averaged, known)
            quantizer = SwitchableFixedPoint(bits_of, signed, parts.active)
            insert_before(part, node, averaged, f"average_quants.{node.name}", quantizer)


def _multiply(
    part: fx.GraphModule,
    node: fx.Node,
    bits_of: dict[int, int],
    parts: Parts,
    known: Container[fx.Node],
) -> None:
    signed = [not never_negative(part, operand, known) for operand in node.all_input_nodes]
    product = QuantizedProduct([bits_of, bits_of], signed, parts.active)
    call_instead(node, part, f"products.{node.name}", product)


def _joins(node: fx.Node, functions: Container[Any]) -> bool:
    """Whether a node calls one of these functions of two tensors."""
    operands = node.all_input_nodes
    return (
        is_call(node)
        and node.target in functions
        and len(operands) == len(node.args) == 2
        and not node.kwargs
        and is_tensor(node)
        and all(operand.op != "get_attr" for operand in operands)
    )


def _reads_image(node: fx.Node) -> bool:
    """Whether a node's value depends on the image: others are constants of the layer."""
    waiting, met = [node], set()
    while waiting:
        one = waiting.pop()
        if one.op == "placeholder":
            return True
        waiting += [source for source in one.all_input_nodes if source not in met]
        met |= set(one.all_input_nodes)
    return False


def _is_one_function(part: fx.GraphModule, node: fx.Node) -> bool:
    """Whether a product is a function of one tensor's numbers, as ``x * sigmoid(x)``."""
    left, right = node.all_input_nodes
    return _before_functions(part, left) is _before_functions(part, right)


def _before_functions(part: fx.GraphModule, node: fx.Node) -> fx.Node:
    """The tensor that a chain of functions of single numbers starts from."""
    while len(node.all_input_nodes) == 1:
        called = is_call(node) and node.target in _FUNCTIONS
        if not called and not isinstance(module_of(part, node), _FUNCTION_MODULES):
            break
        (node,) = node.all_input_nodes
    return node


def is_average(part: fx.GraphModule, node: fx.Node) -> bool:
    """Whether a node averages over more than one position."""
    called = is_call(node) and node.target in _AVERAGE_CALLS
    if not called and not isinstance(module_of(part, node), _AVERAGES):
        return False
    (source,) = node.all_input_nodes[:1]
    one_position = is_tensor(source) and set(shape_of(source)[2:]) <= {1}
    return not one_position
