"""Budgets in a loss: what each term is, and that the controller holds a budget."""

import pytest
import torch

from brevitas_multiquant.allocation.regularisers import L1, Controller
from brevitas_multiquant.errors import ConfigError


def test_the_controller_by_hand():
    """k_p = 1 / (0.1 x 5) = 2 and k_i = 2 / (4 x 5) = 0.1."""
    controller = Controller(rate=0.1, horizon=5).double()
    for ratio, integral in ((1.4, 0.0), (1.1, 0.04), (0.9, 0.05), (1.0, 0.04)):
        assert controller.multiplier == pytest.approx(integral, abs=1e-12)
        given = torch.tensor(ratio, dtype=torch.float64, requires_grad=True)
        term = controller(given)
        force = integral + 2 * (ratio - 1)
        assert term.item() == pytest.approx(force * ratio, abs=1e-12)
        assert torch.autograd.grad(term, given)[0].item() == pytest.approx(force, abs=1e-12)
        controller.observe(given)


def test_its_state_is_in_the_state_dict():
    controller = Controller()
    controller.observe(torch.tensor(1.5))
    other = Controller()
    other.load_state_dict(controller.state_dict())
    assert other.multiplier == controller.multiplier != 0


@pytest.mark.parametrize("pull", [0.0, 0.05, 0.5, -0.2])
def test_it_settles_on_the_budget_whatever_the_task_pulls(pull):
    """A task that gains ``pull`` from each unit of C/T; one update moves C/T by rate x force."""
    controller, ratio, seen = Controller(rate=0.1, horizon=5).double(), 1.36, []
    for _ in range(150):
        given = torch.tensor(ratio, dtype=torch.float64, requires_grad=True)
        (force,) = torch.autograd.grad(controller(given) - pull * given, given)
        controller.observe(given)
        ratio -= 0.1 * force.item()
        seen.append(ratio)
    assert all(abs(one - 1) < 0.01 for one in seen[100:])
    assert min(seen) > 0.8  # no dip far below it on the way
    assert controller.multiplier == pytest.approx(pull, abs=0.01)  # what a unit of budget is worth


def test_l1_has_the_same_force_everywhere():
    for ratio, force in ((1.3, 0.7), (1.001, 0.7), (0.9, -0.7)):
        given = torch.tensor(ratio, requires_grad=True)
        assert torch.autograd.grad(L1(0.7)(given), given)[0].item() == pytest.approx(force)


@pytest.mark.parametrize(
    "make", [lambda v: Controller(rate=v), lambda v: Controller(horizon=v), L1]
)
@pytest.mark.parametrize("value", [0.0, -1.0, float("nan")])
def test_refused(make, value):
    with pytest.raises(ConfigError, match=r"expected a positive number, got"):
        make(value)
