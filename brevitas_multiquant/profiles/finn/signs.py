"""Whether values can be negative: a fixed-point grid without a sign is twice as fine."""

from collections.abc import Container

import torch
import torch.nn.functional as F
from torch import fx, nn

from brevitas_multiquant.profiles.finn.graph import module_of, result_of
from brevitas_multiquant.profiles.finn.modules import (
    BranchMean,
    QuantizedSum,
    SwitchableFixedPoint,
)
from brevitas_multiquant.profiles.profile import Parts

_NEVER_NEGATIVE = (nn.ReLU, nn.ReLU6, nn.Sigmoid, nn.Hardsigmoid)
_NEVER_NEGATIVE_CALLS = {torch.relu, F.relu, F.relu6, "relu"}
_KEEPS_SIGN = (
    *(nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d),
    *(nn.MaxPool1d, nn.AvgPool1d, nn.AdaptiveAvgPool1d),
    *(nn.Flatten, nn.Dropout, nn.Dropout2d, BranchMean),
)
_KEEPS_SIGN_CALLS = {
    *(torch.flatten, torch.mean, F.max_pool2d, F.avg_pool2d, F.adaptive_avg_pool2d),
    *("flatten", "mean", "view", "reshape", "squeeze"),
}


def never_negative(part: fx.GraphModule, node: fx.Node, known: Container[fx.Node] = ()) -> bool:
    """Whether a node's values cannot be negative, given that those of ``known`` are not."""
    if node in known:
        return True
    module = module_of(part, node)
    if module is None:
        keeps, never = node.target in _KEEPS_SIGN_CALLS, node.target in _NEVER_NEGATIVE_CALLS
    else:
        keeps, never = _keeps_sign(module), isinstance(module, _NEVER_NEGATIVE)
    return never or (keeps and never_negative(part, node.all_input_nodes[0], known))


def _keeps_sign(module: nn.Module) -> bool:
    if isinstance(module, SwitchableFixedPoint):
        return not isinstance(module, QuantizedSum)
    return isinstance(module, _KEEPS_SIGN)


def merge_is_signed(parts: Parts) -> bool:
    """Whether the output of some branch can be negative."""
    branches = (branch for branch, _ in parts.branches_and_bits())
    return not all(never_negative(branch, result_of(branch)) for branch in branches)
