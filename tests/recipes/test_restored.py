"""Modes and hooks after a function of the recipes raised in the middle."""

import pytest
import torch
from accelerate import Accelerator

from brevitas_multiquant.recipes.evaluate import top1
from brevitas_multiquant.recipes.network.health import dead_branches, first_fault


def state_of(net):
    """Bit-width, and the mode and hooks of every module."""
    hooks = [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in net.modules()]
    return net.active_bits, [module.training for module in net.modules()], hooks


@pytest.mark.parametrize(
    "call",
    [
        lambda net, images: dead_branches(net, images),
        lambda net, images: first_fault(net, images),
        lambda net, images: top1(net, [(images, torch.zeros(4))], [2, 4], Accelerator(cpu=True)),
    ],
    ids=["dead_branches", "first_fault", "top1"],
)
@pytest.mark.parametrize("raises", [False, True])
def test_state_is_restored(net, images, call, raises):
    """A frozen part, a part in training mode, another bit-width than the largest."""
    net.train().set_active_bits(2)
    net.head.eval()
    before = state_of(net)
    if raises:
        with pytest.raises(RuntimeError):
            call(net, torch.zeros(4, 5, 8, 8))
    else:
        call(net, images)
    assert state_of(net) == before
