"""The distillation loss fits the criterion: one label, several, or values; else it is refused."""

import copy
from functools import partial

import pytest
import timm.loss
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.ops import sigmoid_focal_loss

from brevitas_multiquant import InPlaceDistillation, calibrate
from brevitas_multiquant.errors import ConfigError
from brevitas_multiquant.training.objective import (
    LABELS,
    ONE_LABEL,
    READS,
    VALUES,
    distill_criterion_for,
    kind_of,
    soft_binary_cross_entropy,
    soft_cross_entropy,
)
from tests.tiny import TinyNet

PACKAGES = {"torch": (nn, F), "timm": (timm.loss,)}


class OwnCrossEntropy(nn.CrossEntropyLoss):
    """A criterion of a user's, by inheritance."""


class OwnRegression(nn.MSELoss):
    """The same of a regression, with a forward of its own."""

    def forward(self, output, target):
        return 3 * super().forward(output, target)


class Unknown(nn.Module):
    """Nothing is known of it."""

    def forward(self, output, target):
        return (output - target).abs().amax()


@pytest.fixture
def make(make_net, images):
    """A calibrated network in float64 with so many outputs, in training mode."""

    def build(outputs):
        model = TinyNet()
        model.fc = nn.Linear(6, outputs)
        net = make_net(model, bits=(2, 4, 6))
        calibrate(net, [images])
        return net.double().train()

    return build


@pytest.fixture
def doubles(images):
    return images.double()


def softmax_by_hand(student, teacher):
    shares = teacher.exp() / teacher.exp().sum(1, keepdim=True)
    logs = student - student.exp().sum(1, keepdim=True).log()
    return -(shares * logs).sum(1).mean()


def sigmoid_by_hand(student, teacher):
    wanted, given = (1 / (1 + (-logits).exp()) for logits in (teacher, student))
    return -(wanted * given.log() + (1 - wanted) * (1 - given).log()).mean()


def difference_by_hand(student, teacher):
    return ((student - teacher) ** 2).sum() / student.numel()


CASES = {
    "one label": (5, None, softmax_by_hand),
    "one label, smoothed": (5, nn.CrossEntropyLoss(label_smoothing=0.1), softmax_by_hand),
    "one label, by inheritance": (5, OwnCrossEntropy(), softmax_by_hand),
    "several labels": (5, nn.BCEWithLogitsLoss(), sigmoid_by_hand),
    "several labels, timm": (5, timm.loss.BinaryCrossEntropy(), sigmoid_by_hand),
    "one output": (1, F.binary_cross_entropy_with_logits, sigmoid_by_hand),
    "regression": (1, nn.MSELoss(), difference_by_hand),
    "regression, by inheritance": (
        2,
        OwnRegression(),
        lambda s, t: 3 * difference_by_hand(s, t),
    ),
    "regression, absolute": (2, F.l1_loss, lambda s, t: (s - t).abs().mean()),
}


def target_for(outputs, criterion):
    if kind_of(criterion or nn.CrossEntropyLoss()) == ONE_LABEL:
        return torch.arange(4) % outputs
    values = torch.rand(4, outputs, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    return values.round() if kind_of(criterion) == LABELS else values


@pytest.mark.parametrize("bits", [None, (2, 6)], ids=["all run", "one stands in"])
@pytest.mark.parametrize("case", CASES)
def test_gradients_are_those_of_the_formula(make, doubles, case, bits):
    """Of every parameter, against losses written out and a backward through all of them."""
    outputs, criterion, kd_by_hand = CASES[case]
    net = make(outputs)
    by_hand, target = copy.deepcopy(net), target_for(outputs, criterion)
    returned = InPlaceDistillation(net, criterion=criterion).step(doubles, target, bits=bits)

    ce = criterion or nn.CrossEntropyLoss()
    with by_hand.at_bits(6):
        teacher, *stand_in = by_hand.forward_with_stand_ins(doubles, [] if bits is None else [4])
    students = list(stand_in)
    for bit in (4, 2) if bits is None else (2,):
        with by_hand.at_bits(bit):
            students.append(by_hand(doubles))
    fixed = teacher.detach()
    loss = ce(teacher, target) + sum(ce(s, target) + kd_by_hand(s, fixed) for s in students)
    loss.backward()

    # float64 formulas of a few dozen operations, against the same in another order
    close = {"rtol": 1e-10, "atol": 1e-12}
    torch.testing.assert_close(returned["loss"], loss.detach(), **close)
    torch.testing.assert_close(returned["kd"][2], kd_by_hand(students[-1], fixed).detach(), **close)
    for (name, one), two in zip(net.named_parameters(), by_hand.parameters(), strict=True):
        assert (one.grad is None) == (two.grad is None), name
        if one.grad is not None:
            torch.testing.assert_close(one.grad, two.grad, **close)


def test_every_criterion_of_the_table_exists():
    """Under the name it has there; those of timm without loading timm for it."""
    for kind, names in READS.items():
        for name in names:
            package, _, member = name.partition(".")
            for place in PACKAGES.get(package, ()):
                if hasattr(place, member):
                    found = getattr(place, member)
                    made = object.__new__(found) if isinstance(found, type) else found
                    assert kind_of(made) == kind, name
                    break
            else:
                assert package in ("torchvision", "brevitas_multiquant"), name


@pytest.mark.parametrize(
    ("criterion", "kind"),
    [
        (partial(F.cross_entropy, label_smoothing=0.1), ONE_LABEL),
        (partial(partial(F.huber_loss, delta=2.0), reduction="mean"), VALUES),
        (partial(sigmoid_focal_loss, reduction="mean"), LABELS),
        (timm.loss.SoftTargetCrossEntropy(), ONE_LABEL),
        (timm.loss.AsymmetricLossMultiLabel(), LABELS),
        (nn.SmoothL1Loss(), VALUES),
        (nn.MultiMarginLoss(), None),
        (nn.KLDivLoss(), None),
        (Unknown(), None),
        (lambda output, target: output.sum(), None),
    ],
)
def test_what_a_criterion_reads(criterion, kind):
    assert kind_of(criterion) == kind


def test_a_compiled_criterion_is_known_by_what_was_compiled():
    assert kind_of(torch.compile(nn.BCEWithLogitsLoss())) == LABELS


def test_a_value_is_met_by_the_criterion_itself():
    criterion = nn.HuberLoss(delta=0.5)
    assert distill_criterion_for(criterion) is criterion


@pytest.mark.parametrize("criterion", [Unknown(), lambda output, target: output.sum()])
def test_an_unknown_criterion_is_refused_unless_told_how_to_distill(make, doubles, criterion):
    net, target = make(2), torch.rand(4, 2, dtype=torch.float64)
    with pytest.raises(ConfigError, match=r"pass distill_criterion=.*or distill=False"):
        InPlaceDistillation(net, criterion=criterion)
    assert InPlaceDistillation(net, criterion=criterion, distill=False)(doubles, target)["kd"] == {}
    task = InPlaceDistillation(net, criterion=criterion, distill_criterion=soft_cross_entropy)
    out = task(doubles, target)
    teacher = out["outputs"][6].detach()
    expected = softmax_by_hand(out["outputs"][2], teacher).detach()
    # one float64 formula against another
    torch.testing.assert_close(out["kd"][2], expected, rtol=1e-12, atol=1e-12)


def test_nobody_is_taught_by_an_unknown_criterion_at_one_bit_width(make_net, images):
    net = make_net(bits=[4])
    calibrate(net, [images])
    out = InPlaceDistillation(net, criterion=Unknown())(images, torch.zeros(4, 5))
    assert out["kd"] == {}


@pytest.mark.parametrize("distill", [True, False])
@pytest.mark.parametrize("criterion", [None, F.cross_entropy, timm.loss.SoftTargetCrossEntropy()])
def test_a_cross_entropy_of_one_output_is_refused(make, doubles, criterion, distill):
    task = InPlaceDistillation(make(1), criterion=criterion, distill=distill)
    with pytest.raises(ConfigError, match=r"two classes or more, got \(4, 1\).*BCEWithLogitsLoss"):
        task.step(doubles, torch.zeros(4, dtype=torch.long))


def test_a_softmax_that_teaches_one_output_is_refused(make, doubles):
    """The criterion makes sense, what teaches does not: its term would be 0 forever."""
    task = InPlaceDistillation(
        make(1), criterion=nn.BCEWithLogitsLoss(), distill_criterion=soft_cross_entropy
    )
    with pytest.raises(ConfigError, match="two classes or more"):
        task(doubles, torch.zeros(4, 1, dtype=torch.float64))


@pytest.mark.parametrize(
    ("given", "instead"),
    [
        (nn.CrossEntropyLoss(), "soft_cross_entropy"),
        (F.binary_cross_entropy_with_logits, "soft_binary_cross_entropy"),
    ],
)
def test_a_loss_that_reads_probabilities_cannot_read_a_teacher(make, given, instead):
    with pytest.raises(ConfigError, match=rf"training\.objective\.{instead}"):
        InPlaceDistillation(make(3), distill_criterion=given)
    for own in (soft_cross_entropy, soft_binary_cross_entropy, nn.MSELoss()):
        assert InPlaceDistillation(make(3), distill_criterion=own).distill_criterion is own
