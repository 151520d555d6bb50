"""The branches of a bit-width as one network of k times the channels: layers with k groups.

The other way to run branches, to measure against. It computes what the branches compute; running
statistics are left alone.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from brevitas_multiquant import MultiQuantNet
from brevitas_multiquant.core.clip_quantize import activation_levels, guarded_upper
from brevitas_multiquant.nn.switchable import SwitchableNorm, SwitchableQuantizer
from brevitas_multiquant.quant.layers import CodeLayer
from brevitas_multiquant.quant.proxies import activation_tensor_quant
from brevitas_multiquant.rewrite.graph.decide import call_node


def grouped_forward(net: MultiQuantNet, images: Tensor) -> Tensor:
    """Logits (N, classes) at the active bit-width; even ones, whose branches are all alike."""
    branches = net.branches_at(net.active_bits)
    merged = _run_branches(branches, net.stem(images))
    return net.head(merged.unflatten(1, (len(branches), -1)).mean(1))


def _run_branches(branches: Sequence[Any], features: Tensor) -> Tensor:
    """(N, C, ...) in, (N, k C', ...) out."""
    values: dict[fx.Node, Any] = {}
    modules = [dict(branch.named_modules()) for branch in branches]
    for node in branches[0].graph.nodes:
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), values.__getitem__)
        if node.op == "placeholder":
            value = torch.cat([features] * len(branches), 1)
        elif node.op == "call_module":
            value = _run_modules([named[str(node.target)] for named in modules], *args)
        elif node.op == "output":
            return args[0]
        else:
            value = call_node(branches[0], node, args, kwargs)
        values[node] = value
    raise AssertionError("a graph has an output")


def _run_modules(modules: Sequence[Any], x: Tensor) -> Tensor:
    first = modules[0]
    if isinstance(first, CodeLayer):
        return _convolve(modules, x)
    if isinstance(first, SwitchableQuantizer):
        return _quantize([quantizer[str(quantizer.active.bits)] for quantizer in modules], x)
    if isinstance(first, SwitchableNorm):
        return _normalise([norm[str(norm.active.bits)] for norm in modules], x)
    assert not any(True for _ in first.parameters()), type(first)
    return first(x)


def _convolve(layers: Sequence[Any], x: Tensor) -> Tensor:
    first = layers[0]
    weight = torch.cat([layer.quant_weight() * layer.output_scale for layer in layers])
    bias = None if first.bias is None else torch.cat([layer.bias for layer in layers])
    groups = first.groups * len(layers)
    return F.conv2d(x, weight, bias, first.stride, first.padding, first.dilation, groups)


def _normalise(norms: Sequence[nn.BatchNorm2d], x: Tensor) -> Tensor:
    weight, bias = (torch.cat([getattr(n, name) for n in norms]) for name in ("weight", "bias"))
    return F.batch_norm(x, None, None, weight, bias, training=True, eps=norms[0].eps)


def _quantize(quantizers: Sequence[Any], x: Tensor) -> Tensor:
    """Every group by its own range, straight through the rounding."""
    quants = [activation_tensor_quant(quantizer) for quantizer in quantizers]
    levels = activation_levels(quants[0].bits)
    shape = (1, len(quants), *(1,) * (x.dim() - 1))
    lower = torch.stack([quant.range_impl.lower for quant in quants]).view(shape)
    upper = torch.stack([quant.range_impl.upper for quant in quants]).view(shape)
    groups = x.unflatten(1, (len(quants), -1))
    width = guarded_upper(lower, upper) - lower
    position = ((groups - lower) * (levels / width)).clamp(0, levels)
    return (position + (position.round() - position).detach()).flatten(1, 2)
