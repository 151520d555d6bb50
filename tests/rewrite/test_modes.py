"""Each module's own mode through conversion, calibration and training: frozen norms stay frozen."""

import copy

import pytest
import torch
from torch import nn

from brevitas_multiquant import calibrate, extract_subnet, multiquantize, reestimate_norms
from brevitas_multiquant.errors import UnsupportedModelError, UntracedWarning
from brevitas_multiquant.quant.layers import CodeLayer
from tests.tiny import IMAGE, BranchingOnData, TinyNet

NORMS = (nn.BatchNorm2d,)


class Frozen(TinyNet):
    """Keeps one norm of the body, and the stem's, in evaluation mode whatever happens."""

    names = ("stem_bn", "bn1")

    def train(self, mode=True):
        super().train(mode)
        for name in self.names:
            self.get_submodule(name).eval()
        return self


class FrozenStages(TinyNet):
    """Stops a layer from training, too."""

    def train(self, mode=True):
        super().train(mode)
        self.conv1.weight.requires_grad_(False)
        return self


class AlwaysDrops(nn.Sequential):
    """Dropout that stays on in evaluation."""

    def train(self, mode=True):
        super().train(mode)
        self[-2].train()
        return self


class Merges(TinyNet):
    """Changes its weights with its mode."""

    def train(self, mode=True):
        with torch.no_grad():
            self.conv1.weight.mul_(2.0 if mode else 0.5)
        return super().train(mode)


def convert(model, bits=(2, 4), **options):
    return multiquantize(model, bits, input_shape=IMAGE, **options)


def norm_modes(net):
    """Mode of each norm by the author's name."""
    parts = (net.stem, *net.branches, *net.halves.values())
    modes = {}
    for name, module in (pair for part in parts for pair in part.named_modules()):
        if isinstance(module, NORMS):
            modes.setdefault(name.partition(".")[0], set()).add(module.training)
    return modes


def statistics(net):
    return [
        value.clone()
        for module in net.modules()
        if isinstance(module, NORMS) and not module.training
        for value in (module.running_mean, module.running_var, module.num_batches_tracked)
    ]


def same(first, second):
    return len(first) == len(second) > 0 and all(map(torch.equal, first, second))


@pytest.mark.parametrize("profile", ["paper", "finn"])
def test_norms_in_evaluation_mode_stay_there(profile):
    model = TinyNet().train()
    model.bn1.eval()
    model.stem_bn.eval()
    before = {name: module.training for name, module in model.named_modules()}
    net = convert(model, (2, 3, 4), profile=profile)
    assert norm_modes(net) == {"stem_bn": {False}, "bn1": {False}, "bn2": {True}}
    assert net.training
    assert {name: module.training for name, module in model.named_modules()} == before


@pytest.mark.parametrize("training", [True, False])
def test_without_frozen_modules_all_are_in_the_models_mode(training):
    net = convert(TinyNet().train(training), (2, 3, 4))
    assert {module.training for module in net.modules()} == {training}


def test_modes_in_a_module_that_cannot_be_traced():
    model = BranchingOnData().train()
    model.conv2 = nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4))
    model.conv2[1].eval()
    with pytest.warns(UntracedWarning, match="body cannot be traced"):
        net = convert(model)
    modes = {m.training for m in net.branches[0].modules() if isinstance(m, nn.BatchNorm2d)}
    assert net.plan.opaque == ["body"] and modes == {False}


@pytest.mark.parametrize("by", ["mode", "train"])
def test_calibration_and_reestimation_leave_frozen_statistics(images, by):
    model = TinyNet() if by == "mode" else Frozen()
    model.train()(images)
    for name in Frozen.names:
        model.get_submodule(name).eval()
    net = convert(model)
    free = net.branches[0].bn2["4"]
    frozen, moved = statistics(net), free.running_mean.clone()
    calibrate(net, [images])
    assert same(statistics(net), frozen) and not torch.equal(free.running_mean, moved)
    reestimate_norms(net, [images + 1], batches=1)
    assert same(statistics(net), frozen)
    net(images).sum().backward()
    assert same(statistics(net), frozen)


def test_a_train_method_of_its_own_is_kept(images):
    model = Frozen()
    net = convert(model)
    wanted = {"stem_bn": {False}, "bn1": {False}, "bn2": {True}}
    assert norm_modes(net.train()) == wanted
    assert {mode for modes in norm_modes(net.eval()).values() for mode in modes} == {False}
    assert norm_modes(copy.deepcopy(net).train()) == wanted
    wrapped = nn.Sequential(net).train()
    assert norm_modes(wrapped[0]) == wanted
    calibrate(net.train(), [images])
    assert norm_modes(net) == wanted
    with torch.no_grad(), net.eval().at_bits(4):
        assert torch.equal(extract_subnet(net, 4)(images), net(images))
    torch.manual_seed(0)
    with torch.no_grad(), net.train().floating(), net.at_bits(2):
        assert torch.equal(net(images), model.train()(images))


def test_calibration_of_an_evaluating_network_moves_the_statistics(images):
    """Nothing is frozen in a network that is in evaluation mode as a whole."""
    net = convert(TinyNet().eval())
    calibrate(net, [images])
    assert all(int(m.num_batches_tracked) for m in net.modules() if isinstance(m, nn.BatchNorm2d))


def test_a_train_method_that_stops_parameters():
    model = FrozenStages()
    net = convert(model)
    for branch in net.branches:
        assert not branch.conv1.weight.requires_grad and branch.conv2.weight.requires_grad
    assert model.conv1.weight.requires_grad, "nobody has called its train() yet"


def test_a_train_method_that_keeps_dropout_on(images):
    model = AlwaysDrops(
        nn.Conv2d(3, 4, 3),
        nn.Conv2d(4, 4, 3),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Dropout(0.5),
        nn.Linear(4, 5),
    )
    net = convert(model)
    calibrate(net, [images])
    with torch.no_grad():
        assert not torch.equal(net.eval()(images), net(images))


@pytest.mark.parametrize("check", [True, False])
def test_a_train_method_that_changes_weights_is_refused(check):
    model = Merges()
    before = model.conv1.weight.clone()
    with pytest.raises(
        UnsupportedModelError, match=r"the model has a train\(\) of its own that ch"
    ):
        convert(model, check=check)
    assert torch.equal(model.conv1.weight, before)


def test_layers_in_evaluation_mode_have_the_same_gradients(images):
    """A stage that is frozen as a whole: codes are contracted as they are, scaled afterwards."""
    frozen = TinyNet().train()
    frozen.conv1.eval()
    free = copy.deepcopy(frozen).train()
    gradients = []
    for model in (frozen, free):
        net = convert(model)
        calibrate(net, [images])
        net(images).square().sum().backward()
        gradients.append([p.grad for p in net.parameters() if p.grad is not None])
    assert isinstance(net.branches[0].conv1, CodeLayer)
    # the scale is folded into the weights in one and applied to the sums in the other
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
