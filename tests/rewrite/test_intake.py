"""Models as they are at hand: wrapped, hooked, tied, with computed weights, with attributes."""

import sys
import threading

import pytest
import timm
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

from brevitas_multiquant import ModelSource, calibrate, load_packed, multiquantize, save_packed
from brevitas_multiquant.errors import UnsupportedModelError
from brevitas_multiquant.quant.layers import CodeLayer
from tests.tiny import IMAGE, SharedLayerNet, TinyNet

CHECKED = pytest.mark.parametrize("check", [True, False])


class HalfNegative(nn.Module):
    """A user's own parametrization."""

    def forward(self, weight):
        return torch.cat([weight[:1].abs(), -weight[1:].abs()])


def convs():
    """Stem, two layers of a branch, classifier."""
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(4, 4, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(4, 4, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 5),
    )


def convert(model, bits=(2, 4), **options):
    return multiquantize(model, bits, input_shape=IMAGE, **options)


def equal_in_evaluation(net, model, images):
    with torch.no_grad(), net.eval().floating(), net.at_bits(2):
        return torch.equal(net(images), model.eval()(images))


# wrapped models


@pytest.mark.parametrize("wrap", [nn.DataParallel, torch.compile])
def test_a_wrapped_model_is_taken_out(images, wrap):
    model = TinyNet().eval()
    net = convert(wrap(model))
    assert net.plan.notes[0].startswith("the model was taken out of its ")
    assert not net.plan.opaque and net.plan.model == "TinyNet"
    assert equal_in_evaluation(net, model, images)


def test_wrappers_around_wrappers_and_inside(images):
    model = convs()
    body = nn.Sequential(*model[2:6])
    parts = (*model[:2], nn.DataParallel(torch.compile(body)), *model[6:])
    net = convert(nn.DataParallel(torch.compile(nn.Sequential(*parts))))
    assert [note.partition(" was")[0] for note in net.plan.notes] == ["the model"] * 2 + ["2"]
    names = [n for n, m in net.branches[0].named_modules() if isinstance(m, CodeLayer)]
    assert names == ["2.0", "2.2"]
    assert equal_in_evaluation(net, model, images)


def test_distributed_data_parallel(images, tmp_path):
    distributed = torch.distributed
    store = f"file://{tmp_path}/store"
    distributed.init_process_group("gloo", init_method=store, rank=0, world_size=1)
    try:
        model = convs()
        net = convert(nn.parallel.DistributedDataParallel(model))
        assert "DistributedDataParallel" in net.plan.notes[0]
        assert equal_in_evaluation(net, model, images)
    finally:
        distributed.destroy_process_group()


def exported():
    return torch.export.export(convs().eval(), (torch.randn(2, 3, 8, 8),))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: torch.jit.script(convs()), r"TorchScript .*pass the module that was scripted"),
        (lambda: torch.jit.trace(convs(), torch.randn(IMAGE)), r"the model is TorchScript"),
        (
            lambda: nn.Sequential(*convs()[:4], torch.jit.script(convs()[4]), *convs()[5:]),
            r"4 is TorchScript",
        ),
        (exported, r"ExportedProgram of torch\.export: pass the model that was exported"),
        (lambda: exported().module(), r"made by torch\.export: a graph .*pass the model that"),
        (lambda: nn.Sequential(nn.LazyConv2d(4, 3), *convs()[1:]), r"0 is a lazy LazyConv2d.*once"),
        (lambda: TinyNet, r"got the class TinyNet; make one"),
        (lambda: convs().half(), r"0\.weight is torch\.float16: expected float32 .*model\.float\("),
        (lambda: convs().bfloat16(), r"0\.weight is torch\.bfloat16"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@CHECKED
def test_refused_by_name(make, message, check):
    with pytest.raises(UnsupportedModelError, match=message):
        convert(make(), check=check)


def test_a_traced_graph_and_a_lazy_model_that_has_run_convert(images):
    model = torch.fx.symbolic_trace(convs())
    assert equal_in_evaluation(convert(model), model, images)
    lazy = nn.Sequential(*convs()[:2], nn.LazyConv2d(4, 3, padding=1), *convs()[3:])
    lazy(images)
    assert equal_in_evaluation(convert(lazy), lazy, images)


# computed weights


def _hook_weight_norm(layer):
    nn.utils.weight_norm(layer)


def _hook_spectral_norm(layer):
    nn.utils.spectral_norm(layer)


def _parametrized_weight_norm(layer):
    parametrizations.weight_norm(layer)


def _parametrized_spectral_norm(layer):
    parametrizations.spectral_norm(layer)


def _orthogonal(layer):
    parametrizations.orthogonal(layer)


def _own_parametrization(layer):
    parametrize.register_parametrization(layer, "weight", HalfNegative())


def _pruned(layer):
    prune.l1_unstructured(layer, "weight", amount=0.5)
    prune.random_unstructured(layer, "weight", amount=0.2)
    prune.l1_unstructured(layer, "bias", amount=1)


COMPUTED = [
    _hook_weight_norm,
    _hook_spectral_norm,
    _parametrized_weight_norm,
    _parametrized_spectral_norm,
    _orthogonal,
    _own_parametrization,
    _pruned,
]


@pytest.mark.parametrize("compute", COMPUTED)
@pytest.mark.parametrize("runs", [0, 3])
@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
@CHECKED
def test_a_computed_weight_is_what_the_layer_multiplies_with(images, compute, runs, check):
    """In stem, branch and head, fresh or after training forwards; the model is left as it was."""
    model = convs()
    for index in (0, 2, 8):
        compute(model[index])
    for _ in range(runs):
        model.train()(images)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    kinds = [type(module) for module in model.modules()]
    net = convert(model, check=check)
    assert equal_in_evaluation(net, model, images)
    after = model.state_dict()
    assert state.keys() == after.keys()
    assert all(torch.equal(after[name], value) for name, value in state.items())
    assert [type(module) for module in model.modules()] == kinds
    twin = convert(model, check=check)
    twin.load_state_dict(net.state_dict())
    assert sum("was computed by" in note for note in net.plan.notes) == (
        6 if compute is _pruned else 3
    )
    assert list(net.branches[0].get_submodule("2")._parameters) == ["weight", "bias"]


@pytest.mark.parametrize("compute", [_hook_spectral_norm, _parametrized_weight_norm, _pruned])
def test_a_computed_weight_is_stored_and_loaded(images, compute, tmp_path):
    def build():
        model = convs()
        compute(model[2])
        model(images)
        return model

    net = convert(build(), bits=[2, 3, 4], source=ModelSource("own", "convs"))
    calibrate(net, [images])
    net.train()(images).sum().backward()
    assert net.branches[0].get_submodule("2").weight.grad.abs().sum() > 0
    loaded = load_packed(save_packed(net, tmp_path / "net"), build())
    with torch.no_grad():
        assert torch.equal(loaded(images), net.eval()(images))


def test_notes_say_what_becomes_of_a_mask_and_of_a_norm():
    model = convs()
    prune.l1_unstructured(model[2], "weight", amount=0.5)
    parametrizations.weight_norm(model[4])
    pruned, normed = convert(model).plan.notes
    assert pruned.startswith("2.weight was computed by L1Unstructured: ")
    assert "mask is not kept" in pruned
    assert normed.startswith("4.weight was computed by _WeightNorm: ") and "train the te" in normed


# attributes that torch does not copy


def test_features_kept_from_the_last_forward(images):
    class Keeps(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = convs()
            self.kept, self.by_name = [], {}

        def forward(self, x):
            self.last = self.net[:4](x)
            return self.net[4:](self.last)

    model = Keeps()
    model(images)
    model.kept.append(model.last * 2)
    model.by_name["last"] = (model.last,)
    last = model.last
    net = convert(model)
    assert not net.plan.untraced and equal_in_evaluation(net, model, images)
    assert last.requires_grad and model.kept[0].requires_grad


@pytest.mark.parametrize(
    "make", [threading.Lock, lambda: (i for i in "abc"), lambda: sys.__stdout__]
)
def test_what_cannot_be_copied_is_named(make):
    model = convs()
    model[2].thing = make()
    with pytest.raises(UnsupportedModelError, match=r"2\.thing is a \w+, which cannot be copied"):
        convert(model)
    del model[2].thing
    model.generator = torch.Generator().manual_seed(1)
    assert convert(model).bits == (2, 4)


# tied weights


def _tied_weight(model):
    model[4].weight = model[2].weight


def _tied_bias(model):
    model[4].bias = model[2].bias


def _tied_over_the_cut(model):
    model[0] = nn.Conv2d(4, 4, 3, padding=1)
    model[2].weight = model[0].weight


def _tied_memory(model):
    model[4].weight = nn.Parameter(model[2].weight.data)


def _tied_below_a_parametrization(model):
    model[4].weight = model[2].weight
    for index in (2, 4):
        parametrizations.weight_norm(model[index])
        model[index].parametrizations.weight.original0 = model[2].parametrizations.weight.original0


@pytest.mark.parametrize(
    "tie",
    [_tied_weight, _tied_bias, _tied_over_the_cut, _tied_memory, _tied_below_a_parametrization],
)
@CHECKED
def test_tied_weights_are_refused(tie, check):
    model = convs()
    tie(model)
    with pytest.raises(UnsupportedModelError, match=r"are one parameter \(tied weights\)"):
        convert(model, check=check)


def test_tied_norms_are_refused():
    model = TinyNet()
    model.bn2.weight = model.bn1.weight
    with pytest.raises(UnsupportedModelError, match=r"bn1\.weight and bn2\.weight are one"):
        convert(model)


def test_equal_weights_are_not_tied(images):
    model = convs()
    model[4].load_state_dict(model[2].state_dict())
    assert equal_in_evaluation(convert(model), model, images)


def test_one_module_called_twice_or_under_two_names_stays_one(images):
    model = SharedLayerNet()
    model.other = model.twice
    net = convert(model)
    layers = [m for m in net.branches[0].modules() if isinstance(m, CodeLayer)]
    assert len(layers) == 1
    assert equal_in_evaluation(net, model, images)


class AcrossTheCut(nn.Module):
    """A norm, or a raw parameter, that the stem and the branches share."""

    def __init__(self, what):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.gain = nn.Parameter(torch.ones(4, 1, 1))
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        self.act = nn.ReLU() if what == "act" else nn.PReLU()
        self.fc = nn.Linear(4, 5)
        self.what = what

    def forward(self, x):
        x = self.stem(x)
        if self.what == "norm":
            x = torch.relu(self.norm(self.conv(self.norm(x))))
        elif self.what == "gain":
            x = torch.relu(self.conv(x * self.gain)) * self.gain
        else:
            x = self.act(self.conv(self.act(x)))
        return self.fc(x.mean((2, 3)))


def test_a_norm_in_stem_and_branch_is_refused():
    with pytest.raises(UnsupportedModelError, match=r"norm runs in the stem and in the branch: "):
        convert(AcrossTheCut("norm"))
    moved = convert(AcrossTheCut("norm"), stem="stem")
    assert not any(isinstance(m, nn.BatchNorm2d) for m in moved.stem.modules())


@pytest.mark.parametrize("what", ["gain", "act", "prelu"])
def test_what_is_shared_within_a_branch_or_holds_nothing_passes(images, what):
    model = AcrossTheCut(what)
    assert equal_in_evaluation(convert(model), model, images)


# hooks


def _watch(*_):
    return None


def test_features_that_hooks_collect_have_another_form():
    hooked = timm.create_model("xception41", features_only=True)
    with pytest.raises(UnsupportedModelError, match="feature_cls='getter'") as caught:
        convert(hooked)
    assert len(caught.value.reasons) == 1


@pytest.mark.parametrize(
    ("register", "message"),
    [
        (lambda m: m[2].register_forward_hook(_watch), r"2 has a forward hook \(_watch\)"),
        (lambda m: m[2].register_forward_pre_hook(_watch), r"2 has a hook before its forward"),
        (lambda m: m.register_full_backward_hook(_watch), r"the model has a backward hook"),
        (lambda m: m[2].register_full_backward_pre_hook(_watch), r"2 has a hook before its back"),
        (lambda m: m[2].weight.register_hook(_watch), r"2\.weight has a hook on its gradient"),
        (
            lambda m: m[0].bias.register_post_accumulate_grad_hook(_watch),
            r"0\.bias has a hook on its gradient: .* handle\.remove\(\)",
        ),
    ],
)
@CHECKED
def test_hooks_are_named(images, register, message, check):
    model = convs()
    handle = register(model)
    with pytest.raises(UnsupportedModelError, match=message.replace(".* handle", ".*handle")):
        convert(model, check=check)
    handle.remove()
    assert equal_in_evaluation(convert(model, check=check), model, images)
