"""Fifty steps of the recipe's execution options follow fifty plain ones.

    python -m pytest integration_tests/test_trajectory.py

Takes minutes. All runs start from the same state: calibration in another memory format sums in
another order, and ranges that differ in the last bit are another network.
"""

from functools import partial

import pytest
import torch
from accelerate.state import AcceleratorState

from brevitas_multiquant.recipes.options.train import parse_train
from brevitas_multiquant.recipes.run.create import create_run
from tests.recipes.runs import tiny

STEPS = 50

# The compiler looks at the gradient of every tensor that enters a graph.
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")


def create(folder, *options):
    return create_run(parse_train(tiny(folder, "--lr", "0.05", *options)))


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """The state that every run starts from."""
    return create(tmp_path_factory.mktemp("start")).net.state_dict()


def trajectory(folder, start, *options, dtype=torch.float64):
    """The loss of each step.

    In float64 sums in another order stay below every rounding threshold, so that no code differs
    and runs do not drift apart.
    """
    run = create(folder, *options)
    run.net.load_state_dict(start)
    run.net.to(dtype)
    run.step.task.train()
    losses, epoch = [], 0
    while len(losses) < STEPS:
        for step, (images, labels) in enumerate(run.train.epoch(epoch)):
            batch = (images.to(dtype), labels)
            losses.append(run.step([batch], epoch, step, len(losses)).loss)
        epoch += 1
    return losses[:STEPS]


@pytest.fixture(scope="module")
def plain(tmp_path_factory, start):
    """The losses of the plain step; they fall, so there is something to follow."""
    losses = trajectory(tmp_path_factory.mktemp("plain"), start)
    assert sum(losses[-10:]) < 0.8 * sum(losses[:10])
    return losses


def test_recomputed_branches_give_the_same_losses(tmp_path, start, plain):
    assert trajectory(tmp_path, start, "--recompute") == plain


def test_contiguous_tensors_give_the_same_losses(tmp_path, start, plain):
    """To 1e-9: sums of float64 numbers in another order, carried on over fifty updates."""
    assert trajectory(tmp_path, start, "--no-channels-last") == pytest.approx(plain, rel=1e-9)


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiled_branches_give_the_same_losses(tmp_path, start, plain, monkeypatch, backend):
    """To 1e-6: other orders, and a compiled square root and division, over fifty updates."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    assert trajectory(tmp_path, start, "--compile") == pytest.approx(plain, rel=1e-6)


def test_bf16_learns_as_fast(tmp_path, start, plain):
    """Codes differ from the first step on: the loss of the last steps is that of another seed.

    Three seeds in float32 end between 0.97 and 1.07 of the first.
    """
    AcceleratorState._reset_state(reset_partial_state=True)
    losses = trajectory(tmp_path, start, "--amp", "bf16", dtype=torch.float32)
    assert sum(losses[-10:]) == pytest.approx(sum(plain[-10:]), rel=0.15)
