"""Ranges: the rules by hand, first-batch initialisation, what the state dict keeps."""

import math

import pytest
import torch
import torch.distributed

from brevitas_multiquant.core.clip_quantize import quantize_weight
from brevitas_multiquant.core.grids import WEIGHT_FORMATS
from brevitas_multiquant.errors import CalibrationError
from brevitas_multiquant.quant.ranges import (
    ActivationRange,
    MeanObserver,
    WeightRange,
    activation_bounds,
    weight_bounds,
)


def test_weight_rule_is_three_deviations():
    lower, upper = weight_bounds(torch.tensor([-1.0, 1.0, -1.0, 1.0]))
    assert (lower.item(), upper.item()) == (-3.0, 3.0)


@pytest.mark.parametrize(
    ("name", "bounds"), [("odd", (-3.0, 3.0)), ("int2", (-2.0, 1.0)), ("ternary", (-1.2, 1.2))]
)
def test_every_formats_range_starts_with_zero_at_zero(name, bounds):
    weight_format = WEIGHT_FORMATS[name]
    lower, upper = weight_bounds(torch.tensor([-1.0, 1.0, -1.0, 1.0]), weight_format)
    assert (lower.item(), upper.item()) == pytest.approx(bounds, rel=1e-7)  # 1.2 in fp32
    if 0 in weight_format.integers:
        assert quantize_weight(torch.zeros(1), lower, upper, weight_format).item() == 0


def test_activation_rule_after_relu():
    """u = 3 std / sqrt(1 - 2 / pi), l = min, as in the published code."""
    x = torch.tensor([0.0, 2.0, 0.0, 2.0])
    lower, upper = activation_bounds(x)
    assert lower.item() == 0.0
    assert upper.item() == pytest.approx(3 / math.sqrt(1 - 2 / math.pi), rel=1e-6)  # fp32


def test_activation_rule_on_a_half_normal_reaches_three_sigma_of_the_normal():
    x = torch.randn(1_000_000).abs()
    _, upper = activation_bounds(x)
    assert upper.item() == pytest.approx(3.0, abs=0.01)  # 3 std of 1e6 samples: about 0.003


def test_activation_rule_for_signed_data():
    wide = torch.tensor([-1.0, 1.0, -1.0, 1.0])  # 3 std = 3 is wider than the data
    assert [b.item() for b in activation_bounds(wide)] == [-1.0, 1.0]
    narrow = torch.cat([torch.full((99,), -0.1), torch.full((99,), 0.1), torch.tensor([10.0])])
    mean, reach = narrow.mean().item(), 3 * narrow.std(correction=0).item()
    lower, upper = (b.item() for b in activation_bounds(narrow))
    assert lower == pytest.approx(-0.1)  # the data end before mean - 3 std
    assert upper == pytest.approx(mean + reach, rel=1e-6)  # fp32


def test_shifted_positive_data_start_at_their_minimum():
    lower, _ = activation_bounds(torch.tensor([5.0, 6.0, 7.0]))
    assert lower.item() == 5.0


def test_mean_observer_averages_bounds():
    observer = MeanObserver(activation_bounds)
    first, second = torch.tensor([0.0, 2.0]), torch.tensor([1.0, 5.0])
    observer.observe(first)
    observer.observe(second)
    expected = [
        (a.item() + b.item()) / 2
        for a, b in zip(activation_bounds(first), activation_bounds(second), strict=True)
    ]
    assert [b.item() for b in observer.bounds()] == pytest.approx(expected)


@pytest.mark.parametrize(("kind", "rule"), [(WeightRange, weight_bounds), (ActivationRange, None)])
def test_first_data_set_the_range_and_later_data_do_not(kind, rule):
    learned = kind()
    assert not learned.ready and learned.observed.item() == 0
    first = torch.randn(100)
    lower, upper = learned(first)
    expected = (rule or activation_bounds)(first)
    assert (lower.item(), upper.item()) == tuple(b.item() for b in expected)
    assert learned.ready and learned.observed.item() == 1
    learned(100 * first)
    assert (learned.lower.item(), learned.upper.item()) == tuple(b.item() for b in expected)
    assert learned.observed.item() == 1


def test_empty_data_do_not_count():
    learned = ActivationRange()
    learned(torch.empty(0))
    assert not learned.ready
    assert (learned.lower.item(), learned.upper.item()) == (0.0, 1.0)


def test_observer_sees_every_batch_until_it_is_taken_away():
    learned = ActivationRange()
    learned.observer = MeanObserver(lambda x: (x.min(), x.max()))
    learned(torch.tensor([0.0, 1.0]))
    learned(torch.tensor([2.0, 5.0]))
    assert (learned.lower.item(), learned.upper.item(), learned.observed.item()) == (1.0, 3.0, 2)
    learned.observer = None
    learned(torch.tensor([9.0]))
    assert learned.observed.item() == 2


def test_state_dict_holds_the_counter_and_load_restores_it():
    trained = ActivationRange()
    trained(torch.randn(50))
    state = trained.state_dict()
    assert set(state) == {"lower", "upper", "observed"}

    resumed = ActivationRange()
    assert not resumed.ready  # read once, so that a cached answer would show
    resumed.load_state_dict(state)
    assert resumed.ready
    resumed(1000 * torch.randn(50))
    assert torch.equal(resumed.upper, trained.upper)

    resumed.load_state_dict(ActivationRange().state_dict())  # back inside the initialisation phase
    assert not resumed.ready
    resumed(torch.tensor([0.0, 7.0]))
    assert resumed.observed.item() == 1


def test_ranges_are_trainable_and_initialised_outside_autograd():
    learned = ActivationRange()
    x = torch.randn(10, requires_grad=True)
    lower, upper = learned(x)
    assert lower.is_leaf and upper.is_leaf and lower.requires_grad and upper.requires_grad


def test_several_processes_must_calibrate_first(monkeypatch):
    """Without calibration every process would start from its own batch."""
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    learned = ActivationRange()
    with pytest.raises(CalibrationError, match=r"expected calibrate\(net, loader\) before a run"):
        learned(torch.randn(3))
    learned.set_from(torch.randn(3))
    learned(torch.randn(3))
