"""The rewrite on small models of our own: cuts, sites, options, in-place operations, randomness."""

import copy

import pytest
import torch
from timm.layers import register_notrace_module
from torch import nn

from brevitas_multiquant import MultiQuantNet, calibrate, multiquantize
from brevitas_multiquant.errors import ConfigError, SelfCheckError
from brevitas_multiquant.nn import SwitchableNorm, SwitchableQuantizer
from brevitas_multiquant.quant import layers
from brevitas_multiquant.quant.layers import CodeLayer, register_layer
from tests.tiny import IMAGE, FrozenMode, FunctionalDropoutNet, InPlaceNet, SharedLayerNet, TinyNet


def names_of(part, kind):
    return [name for name, module in part.named_modules() if isinstance(module, kind)]


class PreActivationNet(nn.Module):
    """As in ResNet v2: the stem is a bare convolution, its norm belongs to the first block."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 3, padding=1)
        self.norm1 = nn.BatchNorm2d(4)
        self.conv2 = nn.Conv2d(4, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.fc = nn.Linear(4, 5)

    def forward(self, x):
        x = self.conv1(x)
        x = x + self.conv2(torch.relu(self.norm1(x)))
        return self.fc(torch.relu(self.norm(x)).mean((2, 3)))


@register_notrace_module
class OpaqueNormBlock(nn.Module):
    """As in timm: not for tracing, since shapes decide what runs; with a name like a norm's."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(6, 6, 1)

    def forward(self, x):
        if x.shape[-1] > 100 or max(x.shape[-2], 4) < 4:
            raise AssertionError("decided on the wrong shapes")
        return self.conv(x)


def sequential():
    return nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Conv2d(4, 6, 3, bias=False),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Dropout(0.2),
        nn.Linear(6, 5),
    )


def test_cut_of_the_tiny_net(make_net):
    net = make_net()
    assert isinstance(net, MultiQuantNet)
    assert names_of(net.stem, (nn.Conv2d, nn.BatchNorm2d, nn.ReLU)) == ["stem", "stem_bn", "act"]
    assert set(names_of(net.branches[0], CodeLayer)) == {"conv1", "conv2", "shortcut"}
    assert set(names_of(net.branches[0], SwitchableNorm)) == {"bn1", "bn2"}
    assert names_of(net.head, (nn.AdaptiveAvgPool2d, nn.Linear)) == ["pool", "fc"]
    assert not isinstance(net.head.fc, CodeLayer)


def test_the_plan_says_what_was_done(make_net):
    plan = make_net().plan
    by_name = {layer.name: layer for layer in plan.layers}
    assert {name: layer.part for name, layer in by_name.items()} == {
        "stem": "stem",
        "conv1": "branch",
        "conv2": "branch",
        "shortcut": "branch",
        "fc": "head",
    }
    assert by_name["conv1"].treatment == "2-bit weights"
    assert by_name["stem"].treatment == by_name["fc"].treatment == "float, shared"
    assert by_name["conv1"].reads == by_name["shortcut"].reads != by_name["conv2"].reads
    assert plan.norms == ["bn1", "bn2"]
    table = str(plan)
    assert table.startswith("TinyNet: stem ends at ")
    assert "2 activation quantizers, 2 switchable norms per branch" in table
    assert all(name in table for name in by_name)


def test_layers_that_read_one_tensor_share_one_quantizer(make_net):
    branch = make_net().branches[0]
    assert len(names_of(branch, SwitchableQuantizer)) == 2
    quantizers = {
        str(node.target): sorted(str(user.target) for user in node.users)
        for node in branch.graph.nodes
        if str(node.target).startswith("input_quants.")
    }
    assert quantizers == {
        "input_quants.conv1": ["conv1", "shortcut"],
        "input_quants.conv2": ["conv2"],
    }


def test_the_stem_keeps_a_norm_of_its_own_only(make_net):
    """A norm after the first convolution is the stem's; a pre-activation norm is the branch's."""
    net = make_net(PreActivationNet())
    assert names_of(net.stem, (nn.Conv2d, nn.BatchNorm2d)) == ["conv1"]
    assert set(names_of(net.branches[0], SwitchableNorm)) == {"norm1", "norm"}


def test_users_own_sequential(make_net):
    net = make_net(sequential())
    assert names_of(net.stem, (nn.Conv2d, nn.BatchNorm2d)) == ["0", "1"]
    assert names_of(net.branches[0], CodeLayer) == ["3"]
    assert names_of(net.head, (nn.Flatten, nn.Linear)) == ["7", "9"]


def test_no_layer_hides_in_a_module_that_is_not_for_tracing(make_net):
    model = sequential()
    model.insert(6, OpaqueNormBlock())
    assert names_of(make_net(model).branches[0], CodeLayer) == ["3", "6.conv"]


def test_stem_and_head_options(make_net):
    net = make_net(stem="conv2", head="fc", model=_deep())
    assert names_of(net.stem, nn.Conv2d) == ["conv1", "conv2"]
    assert names_of(net.branches[0], CodeLayer) == ["conv3", "hidden"]
    net = make_net(head="hidden", model=_deep())
    assert names_of(net.stem, nn.Conv2d) == ["conv1"]
    assert names_of(net.branches[0], CodeLayer) == ["conv2", "conv3"]
    assert names_of(net.head, nn.Linear) == ["hidden", "fc"]


def _deep():
    class Deep(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv1 = nn.Conv2d(3, 4, 3)
            self.conv2 = nn.Conv2d(4, 4, 3)
            self.conv3 = nn.Conv2d(4, 4, 3)
            self.hidden = nn.Linear(4, 6)
            self.fc = nn.Linear(6, 5)

        def forward(self, x):
            x = self.conv3(torch.relu(self.conv2(torch.relu(self.conv1(x)))))
            return self.fc(torch.relu(self.hidden(x.mean((2, 3)))))

    return Deep()


@pytest.mark.parametrize("model", [TinyNet, FunctionalDropoutNet, InPlaceNet])
@pytest.mark.parametrize("training", [True, False])
def test_with_quantizers_off_it_is_the_model(make_net, images, model, training):
    model = model().train(training)
    net = make_net(copy.deepcopy(model))
    assert net.training is training
    with net.floating(), net.at_bits(2):
        torch.manual_seed(3)
        ours = net(images)
    torch.manual_seed(3)
    assert torch.equal(ours, model(images))


def test_functional_dropout_follows_the_mode(make_net, images):
    net = make_net(FunctionalDropoutNet())
    calibrate(net, [images])
    rates = {type(m): m.p for m in net.modules() if isinstance(m, (nn.Dropout, nn.Dropout2d))}
    assert rates == {nn.Dropout2d: 0.25, nn.Dropout: 0.5}
    net.train()
    assert not torch.equal(net(images), net(images))
    net.eval()
    assert torch.equal(net(images), net(images))


def test_branches_do_not_disturb_each_other_in_place(make_net, images):
    """Running another branch first leaves a branch's output as it was."""
    net = make_net(InPlaceNet()).eval()
    calibrate(net, [images])
    with torch.no_grad():
        features = net.stem(images)
        first = net.branches[0](features)
        net.branches[1](features)
        assert torch.equal(net.branches[0](features), first)


def test_a_layer_that_runs_twice_is_one_layer(make_net, images):
    net = make_net(SharedLayerNet())
    assert names_of(net.branches[0], CodeLayer) == ["twice"]
    calibrate(net, [images])
    assert net(images).shape == (4, 5)


def test_copy_starts_all_branches_alike(make_net):
    net = make_net(bits=(2, 4, 6))
    first, *others = ([p for n, p in b.named_parameters() if _weight(n)] for b in net.branches)
    for other in others:
        assert all(torch.equal(a, b) for a, b in zip(first, other, strict=True))


def _weight(name):
    return name in {"conv1.weight", "conv2.weight", "shortcut.weight"}


def test_shuffle_keeps_the_values_and_changes_the_order(make_net):
    model = TinyNet()
    net = make_net(model, bits=(2, 4, 6), branch_init="shuffle")
    for name in ("conv1", "conv2", "shortcut"):
        original = model.get_submodule(name).weight
        weights = [branch.get_submodule(name).weight for branch in net.branches]
        assert torch.equal(weights[0], original)
        assert not torch.equal(weights[1], original)
        assert not torch.equal(weights[1], weights[2])
        for weight in weights[1:]:
            assert torch.equal(weight.flatten().sort().values, original.flatten().sort().values)
    assert torch.equal(net.branches[1].conv2.bias, model.conv2.bias)


def test_shuffle_is_seeded(make_net):
    model = TinyNet()
    one, same, other = (
        make_net(model, branch_init="shuffle", seed=seed).branches[1].conv1.weight
        for seed in (1, 1, 2)
    )
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


@pytest.mark.parametrize("branch_init", ["copy", "shuffle"])
def test_the_global_random_state_is_untouched(make_net, branch_init):
    model = TinyNet()
    before = torch.random.get_rng_state()
    make_net(model, branch_init=branch_init)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_one_bit_width_is_enough(make_net, images):
    net = make_net(bits=[2])
    assert len(net.branches) == 1 and net.active_bits == 2
    assert net(images).shape == (4, 5)


def test_frozen_parameters_stay_frozen(make_net):
    model = TinyNet()
    model.stem.weight.requires_grad_(False)
    model.conv1.weight.requires_grad_(False)
    net = make_net(model)
    assert not net.stem.stem.weight.requires_grad
    assert not net.branches[1].conv1.weight.requires_grad
    assert net.branches[1].conv2.weight.requires_grad


def test_double_precision(images):
    net = multiquantize(TinyNet().double(), [2, 4], input_shape=IMAGE)
    output = net(images.double())
    output.sum().backward()
    assert output.dtype == torch.float64
    assert net.branches[0].conv1.weight.grad.dtype == torch.float64


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"branch_init": "random"}, r"branch_init: expected one of \['copy', 'shuffle'\]"),
        ({"input_shape": (3, 8, 8)}, r"input_shape: expected \(1, channels, height, width\)"),
        ({"input_shape": (1, 3, 0, 8)}, r"input_shape: expected .* got \(1, 3, 0, 8\)"),
        ({"profile": "hardware"}, r"profile: expected one of"),
    ],
)
def test_bad_options(tiny, options, message):
    with pytest.raises(ConfigError, match=message):
        multiquantize(tiny, [2, 4], **{"input_shape": IMAGE} | options)


def test_self_check_names_the_mode_and_where(tiny):
    """What a trace cannot see (here: a look at the mode) does not pass silently."""
    model = FrozenMode()
    with pytest.raises(
        SelfCheckError, match=r"FrozenMode: .* in training mode, .* first at conv3; the model was"
    ):
        multiquantize(model, [2, 4], input_shape=IMAGE)
    net = multiquantize(model, [2, 4], input_shape=IMAGE, check=False)
    assert names_of(net.branches[0], CodeLayer) == ["conv2", "conv3"]


@pytest.mark.usefixtures("own_rules")
def test_self_check_finds_a_wrong_rule():
    def doubles_the_weights(conv, active, weight_format):
        layer = layers._conv2d(conv, active, weight_format)
        layer.weight.data.mul_(2)
        return layer

    class OwnConv(nn.Conv2d):
        pass

    register_layer("OwnConv")(doubles_the_weights)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.ReLU(inplace=True),
        nn.Conv2d(4, 4, 3, padding=1),
        nn.ReLU(inplace=True),
        OwnConv(4, 4, 3, padding=1, bias=False),
        nn.ReLU(inplace=True),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 5),
    )
    with pytest.raises(
        SelfCheckError, match=r"in evaluation mode, got a difference .* first at 4;"
    ):
        multiquantize(model, [2], input_shape=IMAGE)
