"""The half branch of odd bit-widths: a slice of the whole one, wide as its budget allows."""

import copy
import math
from fractions import Fraction

import brevitas.nn
import pytest
import timm
import torch
from torch import nn

import brevitas_multiquant.core.cifar_networks  # noqa: F401  (registers the CIFAR networks)
from brevitas_multiquant import InPlaceDistillation, calibrate, cost, extract_subnet, multiquantize
from brevitas_multiquant.errors import UnsupportedModelError
from brevitas_multiquant.quant.layers import WEIGHTED, CodeLayer
from brevitas_multiquant.quant.slices import LayerSlice
from brevitas_multiquant.rewrite.build import cut
from brevitas_multiquant.rewrite.graph.channels import channel_sets
from brevitas_multiquant.rewrite.graph.trace import trace
from brevitas_multiquant.rewrite.narrow.body import narrow
from brevitas_multiquant.rewrite.narrow.scaling import change_at, value_at
from brevitas_multiquant.rewrite.narrow.widths import HALF, HalfPlan, macs_share, plan_half
from brevitas_multiquant.rewrite.plan import make_plan
from tests.tiny import IMAGE, SharedLayerNet, TinyNet
from tests.zoo import SHAPE, ZOO

BITS = [2, 3, 4]
KINDS = [
    "timm resnet",
    "timm resnext",  # groups
    "timm mobilenetv3",  # depthwise, squeeze and excitation
    "timm resnetv2",  # standardised weights, group norm
    "torchvision densenet",  # concatenation
    "torchvision vgg",  # several linear layers behind a flatten
    "torchvision convnext",  # channels last, layer scale
]


def body_of(model, shape=IMAGE):
    traced = trace(model, shape)
    return cut(traced, make_plan(traced, type(model).__name__))[1]


def calibrated(model, bits=BITS, shape=SHAPE, **options):
    net = multiquantize(model, bits, input_shape=shape, **options)
    images = torch.randn(2, *shape[1:])
    calibrate(net, [images])
    return net.eval(), images


@pytest.fixture(scope="module", params=KINDS)
def family(request):
    torch.manual_seed(0)
    return calibrated(ZOO[request.param]())


class TestFamilies:
    def test_subnet_is_the_network_to_the_bit(self, family):
        net, images = family
        outputs = []
        for bits in net.bits:
            with torch.no_grad(), net.at_bits(bits):
                outputs.append(net(images))
            assert torch.equal(extract_subnet(net, bits)(images), outputs[-1]), f"{bits} bits"
        assert not torch.equal(outputs[1], outputs[0]) and not torch.equal(outputs[1], outputs[2])

    def test_weights_are_the_first_channels_of_the_whole(self, family):
        """In the plain subnets, where nothing of the sharing is left."""
        net, _ = family
        half, whole = (
            {
                name: module.weight
                for name, module in extract_subnet(net, bits).branches[1].named_modules()
                if isinstance(module, (brevitas.nn.QuantConv2d, brevitas.nn.QuantLinear))
            }
            for bits in (3, 4)
        )
        assert list(half) == list(whole)
        for name, weight in half.items():
            outputs, inputs = weight.shape[:2]
            assert torch.equal(weight, whole[name][:outputs, :inputs]), name
        assert sum(w.numel() for w in half.values()) < sum(w.numel() for w in whole.values())

    def test_costs_at_most_half(self, family):
        net, _ = family
        costs = cost(net)
        half = costs[3].macs - costs[2].macs
        assert 0.4 * costs[2].macs < half <= 0.5 * costs[2].macs

    def test_trains(self, family):
        net, images = family
        net = copy.deepcopy(net).train()
        InPlaceDistillation(net)(images, torch.tensor([0, 1]))["loss"].backward()
        for name, parameter in net.named_parameters():
            assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name


def test_nothing_is_stored_twice():
    net, _ = calibrated(ZOO["timm resnet"]())
    assert list(net.halves) == ["1"]
    layers = [m for m in net.halves["1"].modules() if isinstance(m, CodeLayer)]
    assert layers and all(isinstance(layer, LayerSlice) for layer in layers)
    own = {name.rpartition(".")[2] for name, _ in net.halves.named_parameters()}
    assert own == {"weight", "bias", "lower", "upper"}  # norms, and ranges of activations
    names = [name for name, _ in net.halves.named_parameters()]
    assert all(".3." in name for name in names)
    assert not any("weight_quant" in name for name in net.halves.state_dict())


def test_raw_parameters_are_shared():
    """ConvNeXt's layer scale is a parameter of the graph, not of a layer."""
    net, _ = calibrated(ZOO["torchvision convnext"]())
    assert any("layer_scale" in name for name, _ in net.branches[1].named_parameters())
    assert not any("layer_scale" in name for name, _ in net.halves.named_parameters())


def test_gradient_reaches_the_slice_alone():
    net, images = calibrated(TinyNet(), BITS, IMAGE)
    net.set_active_bits(3)
    out = net.train()(images)
    (out * torch.randn_like(out)).sum().backward()  # a plain sum would vanish in the norms
    halves = dict(net.halves["1"].named_modules())
    shrunk = 0
    for name, layer in net.branches[1].named_modules():
        if isinstance(layer, CodeLayer):
            outputs, inputs = halves[name].kept
            grad = layer.weight.grad.clone()
            assert grad[:outputs, :inputs].abs().sum() > 0
            grad[:outputs, :inputs] = 0
            shrunk += grad.numel() > outputs * inputs * grad[0, 0].numel()
            assert not grad.any(), name
    assert shrunk


def test_a_branch_that_only_runs_at_half_is_narrow_itself():
    net, images = calibrated(ZOO["timm resnet"](), [3])
    assert not net.halves
    sizes = [sum(p.numel() for p in branch.parameters()) for branch in net.branches]
    assert sizes[1] < sizes[0]
    with torch.no_grad():
        assert torch.equal(extract_subnet(net, 3)(images), net(images))


@pytest.mark.parametrize(
    ("bits", "halves"), [([2, 3, 4, 5, 6, 7, 8], ["2", "3"]), ([5, 8], ["2"]), ([4, 9], [])]
)
def test_candidate_lists(bits, halves):
    net, images = calibrated(TinyNet(), bits, IMAGE)
    assert sorted(net.halves) == halves
    for bit in bits:
        with torch.no_grad(), net.at_bits(bit):
            assert torch.equal(extract_subnet(net, bit)(images), net(images))


def test_copies_keep_the_sharing(images):
    net, _ = calibrated(TinyNet(), BITS, IMAGE)
    net.set_active_bits(3)
    twin = copy.deepcopy(net)
    with torch.no_grad():
        assert torch.equal(twin(images), net(images))
        for layer in twin.branches[1].modules():
            if isinstance(layer, CodeLayer):
                layer.weight.neg_()
        assert not torch.equal(twin(images), net(images))


def test_state_dict_round_trip(images):
    net, _ = calibrated(TinyNet(), BITS, IMAGE)
    other = multiquantize(TinyNet(), BITS, input_shape=IMAGE).eval()
    other.load_state_dict(net.state_dict())
    with torch.no_grad(), net.at_bits(3), other.at_bits(3):
        assert torch.equal(net(images), other(images))


@pytest.mark.parametrize("kind", KINDS)
def test_widest_within_the_budget(kind):
    """Slow oracle: every share that makes a difference, tried one after the other."""
    body = body_of(ZOO[kind](), SHAPE)
    chosen = plan_half(body, kind)
    assert macs_share(body, chosen) <= HALF
    units = {index: math.gcd(*chosen.scaling.sizes[index]) for index in chosen.kept}
    candidates = sorted({Fraction(k, n) for n in units.values() for k in range(1, n + 1)})
    fitting = []
    for share in candidates:
        kept = {i: Fraction(max(1, math.floor(share * n)), n) for i, n in units.items()}
        if macs_share(body, HalfPlan(chosen.sets, chosen.scaling, kept)) <= HALF:
            fitting.append(kept)
    assert chosen.kept == fitting[-1]
    for index, kept in chosen.kept.items():
        for size in chosen.scaling.sizes[index]:
            assert (size * kept).denominator == 1  # every width and every constant is whole


def test_half_of_the_channels(images):
    """The literal reading: every width that may shrink is half of what it was."""
    net = multiquantize(TinyNet(), BITS, input_shape=IMAGE, half_width="channels")
    assert {
        name: layer.kept
        for name, layer in net.halves["1"].named_modules()
        if hasattr(layer, "kept")
    } == {
        "conv1": (3, 2),  # 4 -> 6 channels, halved on both sides
        "conv2": (6, 3),  # adds to what the classifier reads
        "shortcut": (6, 2),
    }


def test_narrow_body_computes_what_its_weights_say(images):
    """Float oracle written out: TinyNet with the first channels of every layer."""
    model = TinyNet().eval()
    body = body_of(model)
    half = narrow(body, plan_half(body, "TinyNet", "channels"), "TinyNet").eval()
    x = torch.randn(2, 4, 8, 8)
    f = nn.functional
    a = x[:, :2]
    y = f.conv2d(a, model.conv1.weight[:3, :2], stride=2, padding=1)
    bn = model.bn1
    y = f.batch_norm(y, bn.running_mean[:3], bn.running_var[:3], bn.weight[:3], bn.bias[:3])
    y = model.bn2(f.conv2d(f.relu(y), model.conv2.weight[:, :3], model.conv2.bias, padding=1))
    y = y + f.conv2d(a, model.shortcut.weight[:, :2], stride=2)
    with torch.no_grad():
        torch.testing.assert_close(half(x), f.relu(y))  # one operation each; order may differ


def test_tiny_channel_sets():
    body = body_of(TinyNet())
    sets = channel_sets(body).of
    assert sets["conv2"] == sets["shortcut"] == channel_sets(body).fixed
    assert len({sets["x"], sets["conv1"], sets["conv2"]}) == 3
    assert sets["conv1"] == sets["bn1"]


def test_a_layer_that_runs_twice_has_one_width():
    with pytest.raises(UnsupportedModelError, match=r"expected widths that cost at most half"):
        multiquantize(SharedLayerNet(), [3], input_shape=IMAGE)
    assert multiquantize(SharedLayerNet(), [2, 4], input_shape=IMAGE).bits == (2, 4)


class GatedSplit(nn.Module):
    """A split into channels and gates that are told apart by number: gates cannot be fewer."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3)
        self.mix = nn.Conv2d(8, 10, 1)
        self.out = nn.Conv2d(8, 8, 1)
        self.fc = nn.Linear(8, 5)

    def forward(self, x):
        x, gates = torch.split(self.mix(self.stem(x)), [8, 2], 1)
        x = x * gates[:, 0:1] + x * gates[:, 1:2]
        return self.fc(self.out(x).mean((2, 3)))


def test_code_that_needs_all_channels_is_refused():
    with pytest.raises(UnsupportedModelError, match=r"half branch: with fewer channels the model"):
        multiquantize(GatedSplit(), [2, 3], input_shape=IMAGE)


def test_models_with_constants_in_their_code():
    """Channel shuffle, splits and slices by number: each has to follow."""
    for name in ("test_mambaout", "ghostnet_050"):
        model = timm.create_model(name, num_classes=5)
        body = body_of(model, (1, 3, 64, 64))
        plan = plan_half(body, name)
        assert plan.scaling.repairs
        half, x = narrow(body, plan, name).eval(), torch.randn(1, *body_input(body))
        assert half(x).shape == body.eval()(x).shape


def body_input(body):
    return next(iter(body.graph.nodes)).meta["tensor_meta"].shape[1:]


def test_places_in_nested_arguments():
    structure = ((1, [2, slice(3, 4)]), {"k": {"n": 5}})
    assert value_at(structure, (0, 1, 1, "stop")) == 4
    changed = change_at(structure, (0, 1, 1, "stop"), lambda v: 2 * v)
    assert changed == ((1, [2, slice(3, 8)]), {"k": {"n": 5}})
    assert change_at(structure, (1, "k", "n"), str)[1] == {"k": {"n": "5"}}
    assert structure[0][1][1] == slice(3, 4)


def test_the_paper_stores_the_same():
    """Table 1: ResNet-20 for CIFAR-100 at 2, 3, 4 bits takes 0.193 MB."""
    net = multiquantize(timm.create_model("cifar_resnet20", num_classes=100), BITS)
    assert round(cost(net).total_bytes / 1e6, 3) == 0.193


def test_every_layer_of_the_half_branch_is_a_layer_of_the_whole():
    net, _ = calibrated(ZOO["torchvision densenet"]())
    whole, half = (
        [n for n, m in part.named_modules() if isinstance(m, WEIGHTED)]
        for part in (net.branches[1], net.halves["1"])
    )
    assert sorted(whole) == sorted(half)


def test_shares_are_fractions():
    body = body_of(TinyNet())
    assert all(isinstance(kept, Fraction) for kept in plan_half(body, "TinyNet").kept.values())
