"""Output channels of no bits, taken out of a plain network: of their layer and of all readers.

A pruned channel gives a constant. It leaves no trace where every path from it ends, channel by
channel, in a convolution that reads the code 0: there its inputs contribute nothing, padded or not.
Where a path does not, as through an addition that other channels join, it stays, with weights that
are all 0.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from brevitas_multiquant.quant.geometry import is_transposed
from brevitas_multiquant.quant.layers import CONVOLUTIONS
from brevitas_multiquant.quant.plain import OutputScale, RangeToCodes, ScaleShift

PRUNED = "pruned_channels"
"""Attribute of a plain layer: which of its output channels have no bits."""

_ELEMENTWISE = (
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Hardswish, nn.Hardtanh),
    *(nn.Sigmoid, nn.Hardsigmoid, nn.Tanh, nn.Identity),
    *(nn.Dropout, nn.Dropout2d, nn.Dropout3d),
)
_ELEMENTWISE_CALLS = {torch.relu, F.relu, F.relu6, F.silu, F.gelu, F.hardswish, "relu"}
_KEEPS_ZEROS = (
    *(nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d),
    *(nn.MaxPool3d, nn.AvgPool3d, nn.AdaptiveAvgPool3d),
)


@dataclass
class _Path:
    """What a constant meets.

    Args:
        removable: by channel.
        cuts: each drops channels from one tensor, given the ones to keep.
    """

    removable: Tensor
    cuts: list[Callable[[Tensor], None]] = field(default_factory=list)


def remove_pruned(branch: nn.Module) -> dict[str, int]:
    """Take pruned channels out of a branch of a plain network.

    Args:
        branch: of `brevitas_multiquant.nn.subnet.extract_subnet`; changed in place.

    Returns:
        Layer -> how many of its output channels are gone; layers with none left out.
    """
    if not isinstance(branch, fx.GraphModule):
        return {}
    removed = {}
    for node in list(branch.graph.nodes):
        layer = _module(branch, node)
        pruned = getattr(layer, PRUNED, None)
        if layer is None or pruned is None or _calls(branch, node) > 1:
            continue
        if layer[0].groups != 1:  # type: ignore[index]  # its channels are its inputs' too
            continue
        if is_transposed(layer[0]):  # type: ignore[index]  # its weights are (inputs, outputs)
            continue
        scale = layer[1]  # type: ignore[index]
        constant = torch.zeros(len(layer[0].weight)) if scale.bias is None else scale.bias  # type: ignore[index]
        path = _follow(branch, node, constant.flatten().clone())
        path.removable &= pruned
        count = int(path.removable.sum())
        if not count or count == len(path.removable):
            continue
        keep = torch.nonzero(~path.removable).flatten()
        for cut in [_outputs_of(layer), *path.cuts]:
            cut(keep)
        removed[str(node.target)] = count
    return removed


def _module(branch: fx.GraphModule, node: fx.Node) -> nn.Module | None:
    return branch.get_submodule(str(node.target)) if node.op == "call_module" else None


def _calls(branch: fx.GraphModule, node: fx.Node) -> int:
    same = (other for other in branch.graph.nodes if other.op == "call_module")
    return sum(other.target == node.target for other in same)


def _follow(branch: fx.GraphModule, node: fx.Node, value: Tensor) -> _Path:
    """Where constants of a node's channels go."""
    path = _Path(torch.ones(len(value), dtype=torch.bool))
    for user in node.users:
        found = _through(branch, user, value)
        path.removable &= found.removable
        path.cuts += found.cuts
    return path


def _through(branch: fx.GraphModule, user: fx.Node, value: Tensor) -> _Path:
    """The path from what one user makes of them."""
    module = _module(branch, user)
    stays = _Path(torch.zeros(len(value), dtype=torch.bool))
    if module is None:
        calls = user.op in ("call_function", "call_method") and len(user.all_input_nodes) == 1
        if not calls or user.target not in _ELEMENTWISE_CALLS:
            return stays
        return _follow(branch, user, _call(user, value))
    if isinstance(module, _ELEMENTWISE) or _is_quantizer(module):
        return _follow(branch, user, module(value.view(1, -1, 1, 1)).flatten())
    if isinstance(module, _KEEPS_ZEROS):
        path = _follow(branch, user, value)
        path.removable &= value == 0
        return path
    if _calls(branch, user) > 1:  # what is cut for one call does not fit the other
        return stays
    if isinstance(module, ScaleShift):
        path = _follow(branch, user, value * module.scale + module.shift)
        path.cuts.append(lambda keep: _cut_buffers(module, keep, "scale", "shift"))
        return path
    if _reads_all_channels(module):
        return _Path(value == 0, [_inputs_of(module)])
    return stays


def _call(user: fx.Node, value: Tensor) -> Tensor:
    function = getattr(Tensor, user.target) if isinstance(user.target, str) else user.target
    return function(value)  # type: ignore[no-any-return]


def _is_quantizer(module: nn.Module) -> bool:
    return isinstance(module, nn.Sequential) and isinstance(module[0], RangeToCodes)


def _reads_all_channels(module: nn.Module) -> bool:
    """Whether it is a plain convolution whose every output reads every input."""
    if not isinstance(module, nn.Sequential) or not isinstance(module[-1], OutputScale):
        return False
    return isinstance(module[0], CONVOLUTIONS) and module[0].groups == 1


def _outputs_of(layer: Any) -> Callable[[Tensor], None]:
    def cut(keep: Tensor) -> None:
        conv, scale = layer
        _cut_weight(conv, keep, 0)
        conv.out_channels = len(keep)
        _cut_buffers(scale, keep, "bias", *(["scale"] if scale.scale.dim() else []))

    return cut


def _inputs_of(layer: Any) -> Callable[[Tensor], None]:
    def cut(keep: Tensor) -> None:
        _cut_weight(layer[0], keep, 1)
        layer[0].in_channels = len(keep)

    return cut


def _cut_weight(conv: Any, keep: Tensor, dim: int) -> None:
    conv.weight = nn.Parameter(conv.weight.index_select(dim, keep), requires_grad=False)


def _cut_buffers(module: Any, keep: Tensor, *names: str) -> None:
    for name in names:
        value = getattr(module, name)
        if value is not None:
            setattr(module, name, value.index_select(0, keep))
