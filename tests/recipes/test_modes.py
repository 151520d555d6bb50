"""Whatever fails, a network has its modes, its bit-width and no hooks of ours behind it."""

import pytest
import torch
from torch import nn

from brevitas_multiquant.recipes.evaluate import top1
from brevitas_multiquant.recipes.network import health
from brevitas_multiquant.recipes.network.modes import evaluating
from brevitas_multiquant.recipes.options.train import parse_train
from brevitas_multiquant.recipes.run.create import create_run
from brevitas_multiquant.recipes.run.norms import refresh_norms
from brevitas_multiquant.training import norm_statistics
from tests.recipes.runs import tiny


class BrokenError(Exception):
    """What goes wrong while a network runs."""


@pytest.fixture
def run(tmp_path):
    """A run whose network has modules of either mode."""
    made = create_run(parse_train(tiny(tmp_path, "--norm-batches", "1")))
    made.net.train()
    made.net.stem.bn1.eval()
    return made


def state_of(net):
    """Modes, number of hooks, bit-width."""
    modes = {name: module.training for name, module in net.named_modules()}
    hooks = [
        (name, len(module._forward_hooks), len(module._forward_pre_hooks))
        for name, module in net.named_modules()
    ]
    return modes, hooks, net.active_bits


def broken_head(net):
    """A head that fails at its first run."""

    def fail(*_):
        raise BrokenError

    return net.head.register_forward_pre_hook(fail)


CALLS = {
    "top1": lambda run: top1(run.net, run.val, run.bits, run.accelerator),
    "dead_branches": lambda run: health.dead_branches(run.net, next(iter(run.val))[0]),
    "first_fault": lambda run: health.first_fault(run.net, next(iter(run.val))[0]),
    "refresh_norms": refresh_norms,
}


@pytest.mark.parametrize("fails", [False, True], ids=["succeeds", "fails"])
@pytest.mark.parametrize("name", CALLS)
def test_modes_hooks_and_bit_width_are_restored(run, name, fails):
    before = state_of(run.net)
    if fails:
        handle = broken_head(run.net)
        with pytest.raises(BrokenError):
            CALLS[name](run)
        handle.remove()
    else:
        CALLS[name](run)
    assert state_of(run.net) == before


def test_collapsed_ranges_only_look(run):
    before = state_of(run.net)
    assert health.collapsed_ranges(run.net) == []
    assert state_of(run.net) == before


def test_statistics_that_cannot_be_estimated_stay_as_they_were(run, monkeypatch):
    before = {name: value.clone() for name, value in run.net.state_dict().items()}
    calls = []

    def fail_at_the_second(net, images, caller):
        calls.append(net(images))
        if len(calls) == 2:
            raise BrokenError

    monkeypatch.setattr(norm_statistics, "run_images", fail_at_the_second)
    with pytest.raises(BrokenError):
        refresh_norms(run)
    assert all(torch.equal(v, before[name]) for name, v in run.net.state_dict().items())


def test_each_module_has_its_own_mode_again():
    net = nn.Sequential(nn.BatchNorm2d(1).eval(), nn.Sequential(nn.Dropout(), nn.ReLU().eval()))
    before = [module.training for module in net.modules()]
    with pytest.raises(BrokenError), evaluating(net):
        assert not any(module.training for module in net.modules())
        raise BrokenError
    assert [module.training for module in net.modules()] == before
