"""Steps with compiled branches are the steps of the branches themselves.

    python -m pytest integration_tests/test_compiled_training.py

Takes minutes: each branch is compiled for each bit-width, forward and backward.
"""

from functools import partial

import pytest
import torch

from brevitas_multiquant.recipes.options.train import parse_train
from brevitas_multiquant.recipes.run.create import create_run
from tests.recipes.runs import tiny

# The compiler looks at the gradient of every tensor that enters a graph.
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")


def train_steps(tmp_path, *options):
    """Losses of two steps, and the gradients of the first, in float64.

    There sums in another order stay below every rounding threshold, so that no code differs.
    """
    run = create_run(parse_train(tiny(tmp_path, *options)))
    run.net.double()
    run.step.task.train()
    losses, gradients = [], {}
    for step, (images, labels) in enumerate(run.train.epoch(0)):
        losses.append(run.step([(images.double(), labels)], 0, step, step).loss)
        gradients = gradients or {
            n: p.grad.clone() for n, p in run.net.named_parameters() if p.grad is not None
        }
    return losses, gradients


STAND_INS = ("--bits", "2", "4", "6", "--bits-per-step", "2.1")


@pytest.mark.parametrize("options", [(), STAND_INS], ids=["all", "stand_ins"])
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiled_steps_follow_the_plain_ones(tmp_path, monkeypatch, backend, options):
    """Losses and gradients to 1e-8: the order of sums is all that differs."""
    losses, gradients = train_steps(tmp_path, *options)
    compiling = partial(torch.compile, backend=backend, fullgraph=True)
    monkeypatch.setattr(torch, "compile", compiling)
    compiled_losses, compiled_gradients = train_steps(tmp_path, "--compile", *options)
    assert compiled_losses == pytest.approx(losses, rel=1e-8)
    assert compiled_gradients.keys() == gradients.keys()
    for name, gradient in gradients.items():
        difference = (compiled_gradients[name] - gradient).norm()
        assert difference <= 1e-8 * gradient.norm() + 1e-12, name
