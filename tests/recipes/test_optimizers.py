"""Optimizers, and learning rates over the epochs."""

import math

import pytest
import torch
from timm.optim import get_optimizer_info

from brevitas_multiquant.recipes.network.optimizers import create_optimizers, create_scheduler
from brevitas_multiquant.recipes.network.trainee import Trainee
from brevitas_multiquant.recipes.options.train import parse_train
from brevitas_multiquant.recipes.options.training import OPTIMIZERS, WITH_MOMENTUM, WITH_NESTEROV
from brevitas_multiquant.recipes.results.checkpoints import Checkpoint
from brevitas_multiquant.recipes.results.state import optimizer_tensors, restore_optimizers


@pytest.mark.parametrize("index", [0, 1])
def test_steps_lower_the_rate_after_whole_epochs(index):
    options = parse_train(
        ["--sched", "multistep", "--epochs", "4", "--decay-milestones", "2"]
    ).optimisation
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=(0.1, 1e-4)[index])
    scheduler = create_scheduler(options, optimizer, steps=5)
    rates = []
    for epoch in range(4):
        rates.append(optimizer.param_groups[0]["lr"] / (0.1, 1e-4)[index])
        scheduler.step(epoch + 1)
    assert rates == pytest.approx([1, 1, 0.1, 0.1])


def test_cosine_ends_at_the_smallest_rate():
    options = parse_train(["--epochs", "4", "--min-lr", "0.01"]).optimisation
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    scheduler = create_scheduler(options, optimizer, steps=5)
    scheduler.step(2)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.055)
    scheduler.step(4)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.01)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (["step", "--decay-epochs", "2", "--decay-rate", "0.5"], [1, 1, 0.5, 0.5, 0.25]),
        (["poly", "--decay-rate", "2"], [(1 - epoch / 5) ** 2 for epoch in range(5)]),
        (["cosine"], [0.5 * (1 + math.cos(math.pi * epoch / 5)) for epoch in range(5)]),
        # the defaults of timm: from tanh -7 to 3
        (["tanh"], [0.5 * (1 - math.tanh(-7 + 10 * epoch / 5)) for epoch in range(5)]),
    ],
)
def test_schedules_are_those_of_timm(schedule, expected):
    options = parse_train(["--epochs", "5", "--sched", *schedule]).optimisation
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    scheduler = create_scheduler(options, optimizer, steps=3)
    rates = []
    for epoch in range(5):
        rates.append(optimizer.param_groups[0]["lr"] / 0.1)
        scheduler.step(epoch + 1)
    assert rates == pytest.approx(expected, abs=1e-6)


def test_what_timm_says_of_momentum():
    assert [name for name in OPTIMIZERS if get_optimizer_info(name).has_momentum] == sorted(
        WITH_MOMENTUM, key=OPTIMIZERS.index
    )
    for name in WITH_NESTEROV:
        for given in ((), ("--nesterov",)):
            (group,) = made(small(), "--opt", name, *given).param_groups
            assert (group["nesterov"], group["momentum"]) == (bool(given), 0.9)


def stepped(optimizer, net, seeds):
    """Parameters after steps along drawn gradients."""
    for seed in seeds:
        generator = torch.Generator().manual_seed(seed)
        for parameter in net.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimizer.step()
    return [parameter.detach().clone() for parameter in net.parameters()]


def small():
    torch.manual_seed(0)
    return torch.nn.Linear(3, 2)


def made(net, *options):
    (optimizer,) = create_optimizers(parse_train(list(options)).optimisation, Trainee(net))
    return optimizer


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_optimizer_goes_on_from_its_tensors_to_the_bit(name):
    whole, first = small(), small()
    expected = stepped(made(whole, "--opt", name), whole, (1, 2, 3))
    before = made(first, "--opt", name)
    stepped(before, first, (1, 2))
    saved = Checkpoint(
        optimizer_tensors([before]), {"param_groups": [before.state_dict()["param_groups"]]}
    )
    after = made(first, "--opt", name)
    restore_optimizers([after], saved)
    assert all(map(torch.equal, stepped(after, first, (3,)), expected))


@pytest.mark.parametrize(
    ("options", "oracle"),
    [
        ((), lambda p: torch.optim.SGD(p, 0.1, 0.9, weight_decay=1e-4)),
        (("--nesterov",), lambda p: torch.optim.SGD(p, 0.1, 0.9, 0, 1e-4, nesterov=True)),
        (("--opt", "adam"), lambda p: torch.optim.Adam(p, 0.1, weight_decay=1e-4)),
    ],
)
def test_steps_are_those_of_torch_to_the_bit(options, oracle):
    ours, theirs = small(), small()
    expected = stepped(oracle(theirs.parameters()), theirs, range(4))
    assert all(map(torch.equal, stepped(made(ours, *options), ours, range(4)), expected))
