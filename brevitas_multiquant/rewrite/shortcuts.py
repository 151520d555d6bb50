"""The 1x1 convolutions of shortcuts, which some methods leave float."""

import operator
from collections.abc import Iterable

import torch
from torch import fx, nn

from brevitas_multiquant.quant.layers import CONVOLUTIONS
from brevitas_multiquant.rewrite.graph.kinds import has_parameters, is_norm
from brevitas_multiquant.rewrite.graph.trace import Trace

_ADDITIONS = {operator.add, operator.iadd, torch.add, "add", "add_"}
_POOLS = (
    *(nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d),
    *(nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.Identity),
)


def shortcuts(traced: Trace, body: Iterable[fx.Node]) -> list[str]:
    """Names of the convolutions that only bring a shortcut to another shape.

    A dense 1x1 convolution, added to something with no more than a norm behind it, whose input
    others read too, be it through a pool in front of it.

    Args:
        traced: the model's graph.
        body: the nodes to look at.

    Example:
        >>> from torchvision.models import resnet18
        >>> from brevitas_multiquant.rewrite.graph.trace import trace
        >>> traced = trace(resnet18(), (1, 3, 32, 32), {})
        >>> shortcuts(traced, traced.graph.nodes)[0]
        'layer2.0.downsample.0'
    """
    calls: dict[str, list[bool]] = {}
    for node in body:
        if isinstance(traced.module(node), CONVOLUTIONS):
            calls.setdefault(str(node.target), []).append(_is_shortcut(traced, node))
    return [name for name, found in calls.items() if all(found)]


def _is_shortcut(traced: Trace, node: fx.Node) -> bool:
    conv = traced.module(node)
    assert isinstance(conv, CONVOLUTIONS)
    dense = set(conv.kernel_size) == {1} and conv.groups == 1
    return dense and _is_added(traced, node) and _source_is_shared(traced, node)


def _is_added(traced: Trace, node: fx.Node) -> bool:
    while len(node.users) == 1:
        (node,) = node.users
        if node.target in _ADDITIONS:
            return True
        module = traced.module(node)
        if not is_norm(module) and not isinstance(module, nn.Identity):
            return False
    return False


def _source_is_shared(traced: Trace, node: fx.Node) -> bool:
    source = node.all_input_nodes[0]
    while len(source.users) == 1 and isinstance(traced.module(source), _POOLS):
        assert not has_parameters(traced.module(source))
        source = source.all_input_nodes[0]
    return len(source.users) > 1
