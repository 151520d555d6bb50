"""Losses of dense outputs and of several entries, against their formulas."""

from collections import namedtuple

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from brevitas_multiquant import InPlaceDistillation, calibrate, multiquantize
from brevitas_multiquant.errors import ConfigError
from brevitas_multiquant.training.criteria import loss_of, soft_cross_entropy
from brevitas_multiquant.training.entries import EntryLosses, distillation_of

Both = namedtuple("Both", "out aux")
TOLERANCE = {"rtol": 1e-10, "atol": 1e-10}
"""Of sums in fp64 that are made in another order."""
SHAPE = (2, 3, 8, 8)


class TwoHeads(nn.Module):
    """Classes of pixels twice, as torchvision's FCN gives them."""

    def __init__(self, make=lambda out, aux: {"out": out, "aux": aux}, classes=3):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU())
        self.body = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU())
        self.last = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU())
        self.score, self.aux_score = nn.Conv2d(4, classes, 1), nn.Conv2d(4, classes, 1)
        self.make = make

    def forward(self, x):
        early = self.body(self.stem(x))
        return self.make(self.score(self.last(early)), self.aux_score(early))


def network(**options):
    torch.manual_seed(0)
    net = multiquantize(TwoHeads(**options), [2, 4], input_shape=SHAPE).double()
    calibrate(net, [torch.randn(SHAPE, dtype=torch.float64)])
    return net.train()


def pixels():
    images = torch.randn(SHAPE, dtype=torch.float64)
    return images, torch.randint(3, (2, 8, 8))


def cross_entropy(output, target):
    """Over all pixels, written out."""
    shares = output.movedim(1, -1).log_softmax(-1)
    return -shares.gather(-1, target[..., None]).mean()


def taught(output, teacher):
    shares = teacher.movedim(1, -1).softmax(-1)
    return -(shares * output.movedim(1, -1).log_softmax(-1)).sum(-1).mean()


def test_distillation_is_pixel_by_pixel():
    student, teacher = torch.randn(2, 2, 5, 4, 4, dtype=torch.float64)
    torch.testing.assert_close(
        soft_cross_entropy(student, teacher), taught(student, teacher), **TOLERANCE
    )


@pytest.mark.parametrize(
    ("make", "keys"),
    [
        (lambda out, aux: {"out": out, "aux": aux}, ("out", "aux")),
        (Both, ("out", "aux")),
        (lambda out, aux: (out, aux), (0, 1)),
    ],
    ids=["dict", "named tuple", "tuple"],
)
def test_a_loss_for_each_entry(make, keys):
    """Loss and gradients of a step by the formulas: CE of all, KD of the smaller bit-width."""
    net, other = network(make=make), network(make=make)
    images, target = pixels()
    losses = EntryLosses(dict.fromkeys(keys, nn.CrossEntropyLoss()), {keys[1]: 0.4})
    result = InPlaceDistillation(net, criterion=losses).step(images, target)
    outputs = {}
    for bits in (4, 2):
        with other.at_bits(bits):
            given = other(images)
            outputs[bits] = [given[0], given[1]] if isinstance(given, tuple) else [*given.values()]
    expected = 0.0
    for weight, large, small in zip((1, 0.4), outputs[4], outputs[2], strict=True):
        terms = cross_entropy(large, target) + cross_entropy(small, target)
        expected = expected + weight * (terms + taught(small, large.detach()))
    expected.backward()
    torch.testing.assert_close(result["loss"], expected.detach(), **TOLERANCE)
    pairs = zip(net.parameters(), other.parameters(), strict=True)
    for one, by_hand in pairs:
        assert (one.grad is None) == (by_hand.grad is None)
        if one.grad is not None:
            torch.testing.assert_close(one.grad, by_hand.grad, **TOLERANCE)
    assert type(result["outputs"][2]) is type(net(images))


def test_targets_and_entries_of_entries():
    images, target = pixels()
    nested = network(make=lambda out, aux: {"scores": (out, aux), "early": aux})
    criterion = {"scores": EntryLosses({0: F.cross_entropy, 1: None}), "early": F.mse_loss}
    targets = {"scores": {0: target}, "early": torch.zeros(2, 3, 8, 8, dtype=torch.float64)}
    result = InPlaceDistillation(nested, criterion=criterion, distill=False).step(images, targets)
    output = result["outputs"][4]
    expected = cross_entropy(output["scores"][0], target) + output["early"].square().mean()
    torch.testing.assert_close(result["ce"][4], expected, **TOLERANCE)


def test_a_known_criterion_has_its_distillation_entry_by_entry():
    losses = EntryLosses({"class": nn.CrossEntropyLoss(), "box": F.mse_loss, "free": None})
    teaching = distillation_of(losses)
    assert teaching.criteria == {"class": soft_cross_entropy, "box": F.mse_loss, "free": None}


@pytest.mark.parametrize(
    ("criterion", "said"),
    [
        (None, r"a loss for each entry.*\['out', 'aux'\]"),
        ({"out": nn.CrossEntropyLoss()}, r"expected an output with the entries \['out'\]"),
        ({"out": None, "aux": None}, "at least one entry"),
        (lambda output, target: output["out"].sum(), "distill_criterion"),
    ],
    ids=["none", "one is missing", "none is learned", "unknown"],
)
def test_what_cannot_be_learned_from(criterion, said):
    with pytest.raises(ConfigError, match=said):
        InPlaceDistillation(network(), criterion=criterion).step(*pixels())


def test_named_errors():
    losses = EntryLosses({"out": F.cross_entropy, "aux": F.cross_entropy})
    scores = torch.zeros(1, 2, 2, 2)
    with pytest.raises(ConfigError, match=r"none for \['aux'\]"):
        losses({"out": scores, "aux": scores}, {"out": torch.zeros(1, 2, 2).long()})
    with pytest.raises(ConfigError, match="'side'"):
        EntryLosses({"out": F.cross_entropy}, {"side": 0.5})
    one_class = network(classes=1)
    criterion = {"out": nn.CrossEntropyLoss(), "aux": None}
    with pytest.raises(ConfigError, match=r"criterion of 'out'.*two classes"):
        InPlaceDistillation(one_class, criterion=criterion).step(*pixels())


def test_class_weights_move_with_the_task():
    weighted = nn.CrossEntropyLoss(weight=torch.ones(3, dtype=torch.float64))
    task = InPlaceDistillation(network(), criterion={"out": weighted, "aux": None})
    assert any(buffer is weighted.weight for buffer in task.buffers())


def test_lists_and_mappings_of_entries_may_be_nested():
    images, target = pixels()
    nested = network(make=lambda out, aux: {"scores": [out, aux], "early": aux})
    criterion = {"scores": [F.cross_entropy, None], "early": None}
    result = InPlaceDistillation(nested, criterion=criterion, distill=False).step(images, target)
    expected = cross_entropy(result["outputs"][4]["scores"][0], target)
    torch.testing.assert_close(result["ce"][4], expected, **TOLERANCE)


@pytest.mark.parametrize(
    ("criterion", "said"),
    [
        (nn.CrossEntropyLoss, r"criterion: .*got <class .*>: make one, CrossEntropyLoss\(\)"),
        ({"out": "ce", "aux": None}, "criterion of 'out': expected a function .*got 'ce'"),
    ],
    ids=["a class", "a name"],
)
def test_what_is_no_criterion(criterion, said):
    with pytest.raises(ConfigError, match=said):
        InPlaceDistillation(network(), criterion=criterion, distill=False)


WHOLE = nn.CrossEntropyLoss()
MAPS = torch.zeros(2, 3, 8, 8, dtype=torch.float64)


@pytest.mark.parametrize(
    ("criterion", "target", "said"),
    [
        (WHOLE, torch.zeros(2, 16, 16).long(), r"classes \(2, 8, 8\) from 0 to 2.*\(2, 16, 16\)"),
        (WHOLE, torch.zeros(2, 1, 8, 8).long(), r"got torch.int64 \(2, 1, 8, 8\)"),
        (WHOLE, torch.full((2, 8, 8), 255), "ignore_index.*255 is out of bounds"),
        (WHOLE, torch.zeros(2, 8, 8).int(), "as torch.int64.*got torch.int32"),
        (WHOLE, {"out": 0}, "got dict"),
        (nn.BCEWithLogitsLoss(), MAPS[:, 0], r"numbers \(2, 3, 8, 8\).*got torch.float64 \(2, 8"),
        (nn.MSELoss(), MAPS[:, :1], r"numbers \(2, 3, 8, 8\).*got torch.float64 \(2, 1, 8, 8\)"),
        (F.l1_loss, None, "got NoneType"),
    ],
    ids=["size", "a channel", "void", "type", "dict", "labels", "values", "none"],
)
def test_targets_that_a_criterion_does_not_take(criterion, target, said):
    """Where torch repeats values in silence as well."""
    with pytest.raises(ConfigError, match=f"criterion: expected a target of .*{said}"):
        loss_of(criterion, MAPS, target)
    losses = EntryLosses({"out": criterion, "aux": None})
    with pytest.raises(ConfigError, match=f"criterion of 'out': expected a target of .*{said}"):
        losses({"out": MAPS, "aux": MAPS}, {"out": target})


def test_errors_of_a_criterion_of_ones_own_are_its_own():
    with pytest.raises(ZeroDivisionError):
        loss_of(lambda output, target: 1 / 0, MAPS, None)
    with pytest.raises(AttributeError, match="nothing"):
        loss_of(lambda output, target: output.nothing, MAPS, None)


@pytest.mark.parametrize("loss", [None, 1.0, torch.zeros(2)])
def test_a_loss_is_one_number(loss):
    with pytest.raises(ConfigError, match="criterion: expected a loss of one number, got"):
        loss_of(lambda output, target: loss, MAPS, MAPS)
