"""Numbers that go wrong stop the run, and are named."""

import math

import pytest
import torch

from brevitas_multiquant.recipes import train
from brevitas_multiquant.recipes.errors import NonFiniteError
from brevitas_multiquant.recipes.network import health
from brevitas_multiquant.recipes.options.train import parse_train
from brevitas_multiquant.recipes.results.checkpoints import checkpoints_in, read_checkpoint
from brevitas_multiquant.recipes.run.create import create_run
from brevitas_multiquant.recipes.run.loop import fit
from brevitas_multiquant.recipes.run.run import save_checkpoint
from tests.recipes.runs import NAME, tiny


@pytest.fixture
def run(tmp_path):
    """A run that has not made a step."""
    run = create_run(parse_train(tiny(tmp_path)))
    train.start(run)
    return run


def spoil(net, name, value):
    """Set the first number of a parameter."""
    with torch.no_grad():
        parameter = net.get_parameter(name)
        parameter[(0,) * parameter.dim()] = value


# At 4 bits, which comes first, branches 0 and 1 run; the range is read inside of the convolution.
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("stem.conv1.weight", math.inf),
        ("branches.1.layer2.0.conv2.weight", math.nan),
        ("branches.0.layer1.0.conv1.weight_quant.tensor_quant.range_impl.upper", math.nan),
        ("head.fc.bias", -math.inf),
    ],
)
def test_the_first_module_at_fault_is_named_and_nothing_is_updated(run, name, value):
    spoil(run.net, name, value)
    before = {key: p.detach().clone() for key, p in run.net.named_parameters()}
    with pytest.raises(NonFiniteError, match=rf"{name} at \d bits\. Lower --lr"):
        run.step([next(run.train.epoch(0))], 0, 0, 0)
    for key, parameter in run.net.named_parameters():
        assert torch.equal(parameter.nan_to_num(7), before[key].nan_to_num(7)), key


def test_an_output_that_overflows_is_named(run):
    """Finite weights, an infinite product: the stem's output is the first fault."""
    with torch.no_grad():
        run.net.stem.conv1.weight.fill_(3e38)
    with pytest.raises(NonFiniteError, match=r"the output of stem\.conv1"):
        run.step([next(run.train.epoch(0))], 0, 0, 0)


def test_a_healthy_network_has_no_fault(run):
    assert health.first_fault(run.net, next(run.train.epoch(0))[0]) is None
    assert health.non_finite_tensor(run.net) is None
    assert health.collapsed_ranges(run.net) == []
    assert health.dead_branches(run.net, next(iter(run.val))[0]) == []


def test_a_range_that_is_not_finite_is_never_saved(run):
    """An infinite u gives finite losses: it is found before the next checkpoint."""
    save_checkpoint(run)
    name = "branches.0.layer1.0.conv1.weight_quant.tensor_quant.range_impl.upper"
    spoil(run.net, name, math.inf)
    run.progress.step = 1
    with pytest.raises(NonFiniteError, match=name):
        save_checkpoint(run)
    (only,) = checkpoints_in(run.folder)
    assert all(v.isfinite().all() for v in read_checkpoint(only).tensors.values())


def test_a_run_that_diverges_keeps_its_last_good_checkpoint(tmp_path, capfd):
    assert train.main(tiny(tmp_path, "--epochs", "1")) == 0
    argv = ["--resume", str(tmp_path / NAME), "--epochs", "9", "--lr", "1e30"]
    argv += ["--warmup-epochs", "2"]
    assert train.main(argv) == 1
    assert "the first numbers that are not finite" in capfd.readouterr().err
    newest = read_checkpoint(checkpoints_in(tmp_path / NAME)[-1])
    assert all(v.isfinite().all() for v in newest.tensors.values())


def test_collapsed_ranges_and_dead_branches_are_warned_of(tmp_path, capfd):
    run = create_run(parse_train(tiny(tmp_path, "--epochs", "1", "--lr", "1e-9")))
    train.start(run)
    with torch.no_grad():
        conv = run.net.branches[1].get_submodule("layer1.0.conv1")
        learned = conv.weight_quant.tensor_quant.range_impl
        learned.upper.copy_(learned.lower - 1)
        for name, parameter in run.net.branches[0].named_parameters():
            if "bn2.2." in name or "downsample" in name:
                parameter.zero_()
    fit(run)
    warnings = [line for line in capfd.readouterr().err.splitlines() if "warning: epoch 1" in line]
    assert any("branches.1.layer1.0.conv1" in line and "collapsed" in line for line in warnings)
    assert any("branches.0 at 2 bits gives the same output" in line for line in warnings)
