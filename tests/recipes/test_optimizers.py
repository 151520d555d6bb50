"""Learning rates over the epochs."""

import pytest
import torch

from brevitas_multiquant.recipes.network.optimizers import create_scheduler
from brevitas_multiquant.recipes.options.train import parse_train


@pytest.mark.parametrize("index", [0, 1])
def test_steps_lower_the_rate_after_whole_epochs(index):
    options = parse_train(
        ["--sched", "step", "--epochs", "4", "--decay-milestones", "2"]
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
