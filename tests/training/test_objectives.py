"""Each objective over 20 steps against plain loops, autograd and formulas written out."""

import copy
import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F

from brevitas_multiquant import InPlaceDistillation, calibrate, objective_of
from brevitas_multiquant.core.method import METHODS, Single
from brevitas_multiquant.errors import ConfigError, NetworkError
from brevitas_multiquant.methods.objectives import options_of_objective
from brevitas_multiquant.training.objective import (
    LabelsAlone,
    RecursiveDistillation,
    StepwiseDistillation,
)
from brevitas_multiquant.training.range_rates import adaptive_rate, gap_rate, scaled_rate
from brevitas_multiquant.training.task import Objective
from tests.training.by_hand import (
    DECAY,
    LR,
    MOMENTUM,
    RANGE_LR,
    AdamByHand,
    adaptive_rate_by_hand,
    cross_entropy,
    distillation,
    sgd_by_hand,
)

STEPS = 20
# float64; sums of the gradients of several bit-widths in another order, over 20 steps of momentum
FP64 = {"rtol": 1e-9, "atol": 1e-12}


@pytest.fixture
def net(make_net, images):
    """Three bit-widths in double precision: the middle one has a teacher and may be one."""
    network = make_net(bits=(2, 4, 6))
    calibrate(network, [images])
    return network.double().train()


@pytest.fixture
def batches(images):
    generator = torch.Generator().manual_seed(1)
    return [
        (torch.rand(images.shape, generator=generator).double(), torch.arange(len(images)) % 5)
        for _ in range(STEPS)
    ]


def outputs_of(net, images):
    """Bit-width -> logits, in the order of a step."""
    outputs = {}
    for bits in (6, 4, 2):
        net.set_active_bits(bits)
        outputs[bits] = net(images)
    return outputs


def labels_alone(net, images, target):
    return sum(cross_entropy(output, target) for output in outputs_of(net, images).values())


def in_place(net, images, target):
    out = outputs_of(net, images)
    ce = sum(cross_entropy(output, target) for output in out.values())
    return ce + distillation(out[4], out[6]) + distillation(out[2], out[6])


def recursive(net, images, target):
    out = outputs_of(net, images)
    ce = cross_entropy(out[6], target)
    return ce + distillation(out[4], out[6]) + distillation(out[2], out[4])


def top(net, images, target):
    out = outputs_of(net, images)
    ce = cross_entropy(out[6], target)
    return ce + distillation(out[4], out[6]) + distillation(out[2], out[6])


TOGETHER = {
    "labels": (LabelsAlone, {}, labels_alone),
    "in place": (InPlaceDistillation, {}, in_place),
    "recursive": (RecursiveDistillation, {}, recursive),
    "top": (RecursiveDistillation, {"teacher": "top"}, top),
    "hard": (RecursiveDistillation, {"teacher": "labels"}, labels_alone),
}


def optimizers_of(net):
    return (
        torch.optim.SGD(net.model_parameters(), LR, MOMENTUM, weight_decay=DECAY),
        torch.optim.Adam(net.range_parameters(), RANGE_LR),
    )


def assert_same(net, reference):
    theirs = reference.state_dict()
    for name, value in net.state_dict().items():
        torch.testing.assert_close(value, theirs[name], **FP64, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("kind", TOGETHER)
def test_twenty_steps_of_one_update_for_all_bit_widths(net, batches, kind):
    make, options, loss_by_hand = TOGETHER[kind]
    reference, momenta = copy.deepcopy(net), {}
    task, (model, ranges) = make(net, **options), optimizers_of(net)
    reference_ranges = torch.optim.Adam(reference.range_parameters(), RANGE_LR)
    for images, target in batches:
        total = task.step(images, target)["loss"]
        model.step()
        ranges.step()
        net.zero_grad()
        expected = loss_by_hand(reference, images, target)
        torch.testing.assert_close(total, expected.detach(), **FP64)
        expected.backward()
        sgd_by_hand(reference.model_parameters(), momenta)
        reference_ranges.step()
        reference.zero_grad()
    assert_same(net, reference)


@pytest.mark.parametrize("distill", [True, False])
def test_twenty_steps_of_an_update_after_each_bit_width(net, batches, distill):
    """Double Rounding's: the later bit-widths run with what the earlier ones have learned."""
    reference, momenta = copy.deepcopy(net), {}
    task, (model, ranges) = StepwiseDistillation(net, distill=distill), optimizers_of(net)
    by_hand = AdamByHand(list(reference.range_parameters()))
    factors = []

    def update(bits):
        factors.append(task.range_rate(bits))
        model.step()
        with scaled_rate(ranges, factors[-1]):
            ranges.step()
        net.zero_grad()

    for images, target in batches:
        task.step(images, target, update=update)
        teacher = None
        for bits in (6, 4, 2):
            reference.set_active_bits(bits)
            output = reference(images)
            loss = cross_entropy(output, target)
            if teacher is None:
                teacher = output.detach()
            elif distill:
                loss = loss + distillation(output, teacher)
            loss.backward()
            rate = adaptive_rate_by_hand(reference, 6 - bits)
            sgd_by_hand(reference.model_parameters(), momenta)
            by_hand.step(rate)
        reference.set_active_bits(6)
    assert_same(net, reference)
    assert len(factors) == 3 * STEPS and all(0 <= factor <= 1 for factor in factors)
    assert [ranges.param_groups[0]["lr"], len(set(factors))] == [RANGE_LR, 3 * STEPS]


def test_the_rate_of_a_gap():
    for gap in range(15):
        expected = 10 ** (-gap / 2) if gap % 2 == 0 else 5 * 10 ** (-(gap + 1) / 2)
        assert math.isclose(gap_rate(gap), expected, rel_tol=1e-14)  # a few roundings of 2**-53
    assert adaptive_rate(3, []) == gap_rate(3)
    assert adaptive_rate(0, [torch.tensor([2.0, -2.0])]) == 0.0


def test_a_student_without_labels_gets_nothing_from_them(net, batches):
    images, target = batches[0]
    parts = {part.bits: part for part in RecursiveDistillation(net).losses(images, target)}
    assert not parts[4].ce.requires_grad and parts[4].loss is not parts[4].kd
    assert torch.equal(parts[4].ce, F.cross_entropy(parts[4].output, target))
    assert torch.equal(parts[2].loss, parts[2].kd)


def test_the_next_larger_of_those_that_run_teaches(net, batches):
    images, target = batches[0]
    net.eval()  # so that one bit-width's norms do not change the other's
    parts = list(RecursiveDistillation(net).losses(images, target, [2, 6]))
    assert [part.bits for part in parts] == [6, 2]
    expected = distillation(parts[1].output, parts[0].output)
    torch.testing.assert_close(parts[1].loss, expected, **FP64)


def test_an_update_after_each_is_asked_for_where_it_is_needed_and_nowhere_else(net, batches):
    images, target = batches[0]
    stepwise = StepwiseDistillation(net)
    with pytest.raises(ConfigError, match=r"StepwiseDistillation\.step: expected update="):
        stepwise.step(images, target)
    with pytest.raises(ConfigError, match=r"StepwiseDistillation: expected step\(images"):
        stepwise(images, target)
    with torch.no_grad():
        assert sorted(stepwise(images, target)["ce"]) == [2, 4, 6]
    with pytest.raises(ConfigError, match=r"InPlaceDistillation\.step: expected no update="):
        InPlaceDistillation(net).step(images, target, update=print)


def test_unknown_names_of_an_objective(net):
    for wrong in ({"teacher": "all"}, {"update": "never"}, {"range_rate": "fast"}):
        (name,) = wrong
        with pytest.raises(ConfigError, match=f"{name}: expected one of"):
            Objective(**wrong)
    with pytest.raises(ConfigError, match=r"teacher: expected one of \['recursive', 'top'"):
        RecursiveDistillation(net, teacher="soft")


def test_the_objective_of_a_network_is_its_methods(net):
    assert type(objective_of(net)) is InPlaceDistillation
    assert objective_of(net, distill=False).objective == Objective()
    with pytest.raises(ConfigError, match=r"teacher: .*'multiquant' has, which are \['loss'"):
        objective_of(net, teacher="top")
    with pytest.raises(NetworkError, match=r"DistributedDataParallel\(objective_of\(net\)\)"):
        objective_of(torch.nn.DataParallel(net))


@pytest.mark.parametrize("method", METHODS)
def test_every_method_names_an_objective_with_options(method):
    assert "criterion" in options_of_objective(method)


def test_one_body_has_no_stand_ins(make_net, images, monkeypatch):
    """At another bit-width the same body would only stand in for itself."""
    row = dataclasses.replace(METHODS["multiquant"], name="single", topology=Single())
    monkeypatch.setitem(METHODS, "single", row)
    net = make_net(bits=(2, 4, 6), method="single")
    calibrate(net, [images])
    monkeypatch.setattr(net, "forward_with_stand_ins", None)
    task = InPlaceDistillation(net.train())
    out = task.step(images, torch.arange(len(images)), bits=[2, 6])
    assert list(out["ce"]) == [6, 2]
    parts = [*out["ce"].values(), *out["kd"].values()]
    torch.testing.assert_close(out["loss"], sum(parts), rtol=1e-6, atol=1e-6)  # fp32 sum of three
    trained = {name for name, p in net.named_parameters() if p.grad is not None}
    assert any(".6." in name for name in trained) and not any(".4." in name for name in trained)
