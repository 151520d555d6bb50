"""Networks as users write them: functions for layers, control flow, auxiliary heads."""

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.layers import BatchNormAct2d
from timm.models.mlp_mixer import MlpMixer
from torch import nn
from torchvision.models import swin_transformer
from torchvision.ops import FrozenBatchNorm2d

from brevitas_multiquant import calibrate, extract_subnet, multiquantize
from brevitas_multiquant.errors import (
    ExportError,
    SelfCheckError,
    TraceError,
    UnsupportedModelError,
)
from brevitas_multiquant.export import export_onnx, export_qonnx
from brevitas_multiquant.nn import SwitchableNorm
from brevitas_multiquant.nn.switchable import ScaleShiftNorm
from brevitas_multiquant.quant.layers import CodeLayer
from brevitas_multiquant.rewrite.graph.trace import copy_sharing_parameters
from tests.tiny import IMAGE, BranchingOnData, TinyNet

untraced_is_known = pytest.mark.filterwarnings("ignore::brevitas_multiquant.errors.UntracedWarning")


def names_of(part, kind):
    return [name for name, module in part.named_modules() if isinstance(module, kind)]


def rows(net):
    return {row.name: row for row in net.plan.layers}


class Net(nn.Module):
    """A stem, whatever is between, a classifier; without a norm that would mix images."""

    def __init__(self, *middle):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.middle = nn.Sequential(*middle)
        self.last = nn.Conv2d(4, 4, 1)
        self.fc = nn.Linear(4, 5)

    def forward(self, x):
        x = torch.relu(self.stem(x))
        return self.fc(torch.relu(self.last(self.middle(x))).mean((2, 3)))


class SkipsOnData(nn.Module):
    """Control flow on data around layers, a norm, and an operation in place."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.alias = self.conv

    def forward(self, x):
        x.mul_(0.5)
        return self.norm(self.alias(x)).relu() if x.mean() > 0.01 else x + 1


class NoiseOnData(nn.Module):
    """Control flow on data, and nothing to quantize."""

    def forward(self, x):
        return x * 0.5 if x.amax() > 2 else x


class HiddenAttention(nn.Module):
    def __init__(self):
        super().__init__()
        self.query = nn.Linear(4, 4)

    def forward(self, x):
        if x.mean() > 100:
            return x
        tokens = x.flatten(2).transpose(1, 2)
        weights = (self.query(tokens) @ tokens.transpose(1, 2)).softmax(-1)
        return (weights @ tokens).transpose(1, 2).reshape(x.shape)


class Functional(nn.Module):
    """Raw parameters and functions of torch where others write modules."""

    def __init__(self):
        super().__init__()
        self.first = nn.Parameter(torch.randn(4, 3, 3, 3) / 5)
        self.depthwise = nn.Parameter(torch.randn(4, 1, 3, 3) / 3)
        self.pointwise = nn.Parameter(torch.randn(6, 4, 1, 1) / 2)
        self.bias = nn.Parameter(torch.randn(6))
        self.classes = nn.Parameter(torch.randn(5, 6))
        self.register_buffer("blur", torch.full((6, 1, 3, 3), 1 / 9))

    def forward(self, x):
        x = F.relu(F.conv2d(x, self.first, padding=1))
        x = F.conv2d(x, self.depthwise, None, 2, 1, groups=4)
        x = F.conv2d(x, weight=self.pointwise, bias=self.bias)
        x = F.conv2d(x, self.blur, padding=1, groups=6)
        return F.linear(x.relu().mean((2, 3)), self.classes)


class ComputedWeight(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 4, 3, 3))

    def forward(self, x):
        return F.conv2d(x, self.weight - self.weight.mean(), padding=1)


class RawProduct(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 4))

    def forward(self, x):
        return (x.permute(0, 2, 3, 1) @ self.weight).permute(0, 3, 1, 2)


class Auxiliary(nn.Module):
    """As GoogLeNet: a second classifier, with dropout, that runs in training only."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.body = nn.Conv2d(4, 4, 3, padding=1)
        self.aux = nn.Sequential(nn.Flatten(), nn.Dropout(0.7), nn.Linear(256, 5))
        self.drop = nn.Dropout(0.3)
        self.fc = nn.Linear(4, 5)

    def forward(self, x):
        x = torch.relu(self.stem(x))
        aux = self.aux(x) if self.training else None
        x = self.fc(self.drop(torch.relu(self.body(x)).mean((2, 3))))
        return (x, aux) if self.training else x


class ParallelStem(nn.Module):
    """A re-parameterised stem and two classifiers."""

    def __init__(self):
        super().__init__()
        self.wide = nn.Conv2d(3, 4, 3, padding=1)
        self.point = nn.Conv2d(3, 4, 1)
        self.body = nn.Conv2d(4, 4, 3, padding=1)
        self.one = nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 5))
        self.two = nn.Linear(4, 5)

    def forward(self, x):
        x = torch.relu(self.wide(x) + self.point(x))
        x = torch.relu(self.body(x)).mean((2, 3))
        return (self.one(x) + self.two(x)) / 2


@untraced_is_known
def test_control_flow_in_the_models_own_forward(make_net, images):
    """Cut by the order of execution; the branch decides as the model does, image by image."""
    model = BranchingOnData().eval()
    net = make_net(model)
    assert names_of(net.stem, nn.Conv2d) == ["conv1"]
    assert names_of(net.branches[0], CodeLayer) == ["body.conv2.layer"]
    assert names_of(net.head, nn.Linear) == ["fc"]
    assert net.plan.notes[0].startswith("body cannot be traced (TraceError: symbolically traced")
    taken = set()
    with torch.no_grad(), net.floating(), net.at_bits(2):
        for shift in (-3.0, 3.0):
            taken.add(bool(model.conv1(images + shift).sum() > 0))
            assert torch.equal(net(images + shift), model(images + shift))
    assert taken == {True, False}


@untraced_is_known
def test_control_flow_in_a_block(make_net, images):
    model = Net(SkipsOnData())
    net = make_net(model)
    assert set(names_of(net.branches[0], CodeLayer)) == {"middle.0.conv.layer", "last"}
    assert names_of(net.branches[0], SwitchableNorm) == ["middle.0.norm"]
    assert rows(net)["middle.0.conv"].why == "between stem and head, untraced"
    assert "1 switchable norms" in str(net.plan) and "3 activation" not in str(net.plan)
    branch = net.branches[0]
    assert branch.middle.get_submodule("0").conv is branch.middle.get_submodule("0").alias
    calibrate(net, [images.abs()])
    net.train()(images.abs()).sum().backward()
    layer = branch.get_submodule("middle.0.conv.layer")
    assert layer.weight.grad.abs().sum() > 0


@untraced_is_known
def test_an_opaque_block_does_not_disturb_the_other_branches(make_net, images):
    net = make_net(Net(SkipsOnData())).eval()
    calibrate(net, [images.abs()])
    with torch.no_grad():
        features = net.stem(images)
        first = net.branches[0](features)
        net.branches[1](features)
        assert torch.equal(net.branches[0](features), first)
        with net.at_bits(4):
            assert torch.equal(extract_subnet(net, 4)(images), net(images))


@untraced_is_known
@pytest.mark.parametrize("export", [export_qonnx, export_onnx])
def test_control_flow_is_not_exported(make_net, images, tmp_path, export):
    """A file would silently hold one of the paths."""
    net = make_net(BranchingOnData())
    calibrate(net, [images])
    with pytest.raises(ExportError, match=r"without control flow on data, got body, which could"):
        export(net, tmp_path)


@untraced_is_known
def test_an_opaque_module_without_layers_stays(make_net):
    net = make_net(Net(nn.Conv2d(4, 4, 1), NoiseOnData()))
    assert names_of(net.branches[0], NoiseOnData) == ["middle.1"]
    assert names_of(net.branches[0], CodeLayer) == ["middle.0", "last"]


def test_a_module_that_asks_for_its_mode(make_net, images):
    """A user's own stochastic depth is no constant of the trace."""

    class DropConnect(nn.Module):
        def forward(self, x):
            if not self.training:
                return x
            return x * (torch.rand(len(x), 1, 1, 1) < 0.5) / 0.5

    net = make_net(Net(nn.Conv2d(4, 4, 1), DropConnect()))
    assert names_of(net.branches[0], DropConnect) == ["middle.1"]
    calibrate(net, [images])
    with torch.no_grad():
        assert torch.equal(net.eval()(images), net(images))
        assert not torch.equal(net.train()(images), net(images))


def test_attention_cannot_hide(make_net):
    with pytest.raises(UnsupportedModelError, match=r"middle\.0 multiplies matrices \(.*matmul"):
        make_net(Net(HiddenAttention()))
    attention = swin_transformer.ShiftedWindowAttention(4, [2, 2], [0, 0], 1)

    class Windows(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = attention

        def forward(self, x):
            return self.attention(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)

    with pytest.raises(UnsupportedModelError, match=r"shifted_window_attention multiplies matri"):
        make_net(Net(Windows()))


@pytest.mark.parametrize("place", ["before", "after"])
def test_control_flow_that_cannot_be_set_apart(make_net, place):
    class Decides(BranchingOnData):
        def forward(self, x):
            if place == "before":
                return super().forward(x if x.mean() > 1 else -x)
            return super().forward(x) * 2

    where = {"before": "something else than its first conv", "after": "does not return its last"}
    with pytest.raises(TraceError, match=rf"Decides\.forward cannot be traced: .*{where[place]}"):
        make_net(Decides())


def test_a_model_that_does_not_run_in_training_mode(make_net):
    class Evaluates(TinyNet):
        def forward(self, x):
            if self.training:
                raise RuntimeError("needs targets")
            return super().forward(x)

    with pytest.raises(SelfCheckError, match=r"the model itself to run in training mode .*targets"):
        make_net(Evaluates())


def test_functions_on_raw_parameters(make_net, images):
    model = Functional()
    net = make_net(model)
    assert len(names_of(net.branches[0], CodeLayer)) == 2
    kinds = [(row.kind, row.part, row.treatment) for row in net.plan.layers]
    assert kinds == [
        ("Conv2d", "stem", "float, shared"),
        ("conv2d()", "branch", "float"),
        ("Conv2d", "branch", "2-bit weights"),
        ("Conv2d", "branch", "2-bit weights"),
        ("Linear", "head", "float, shared"),
    ]
    assert "blur is a constant: nothing to train" in str(net.plan)
    weights = {id(parameter) for parameter in model.parameters()}
    assert not weights & {id(parameter) for parameter in net.parameters()}
    net.train()(images).sum().backward()
    branch = net.branches[0]
    assert all(branch.get_submodule(n).weight.grad is not None for n in names_of(branch, CodeLayer))


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (ComputedWeight, r"conv2d \(conv2d\) works on a raw or computed weight .*nn\.Conv2d"),
        (RawProduct, r"matmul \(matmul\) works on a raw or computed weight"),
    ],
)
def test_raw_weights_that_would_stay_float(make_net, module, message):
    with pytest.raises(UnsupportedModelError, match=message):
        make_net(Net(module()))


def test_constant_norms_are_told(make_net):
    net = make_net(Net(nn.Conv2d(4, 4, 1), FrozenBatchNorm2d(4)))
    assert net.plan.norms == []
    assert net.plan.notes == [
        "middle.1 (FrozenBatchNorm2d) holds constants alone: all bit-widths share it"
    ]


def test_synchronised_norms(make_net, images):
    """Converted before the rewrite they are as exact as plain ones."""
    net = make_net(nn.SyncBatchNorm.convert_sync_batchnorm(TinyNet()))
    norms = [m for m in net.modules() if isinstance(m, nn.SyncBatchNorm)]
    assert len(norms) == 1 + 2 * 3 and all(isinstance(norm, ScaleShiftNorm) for norm in norms)
    calibrate(net, [images])
    with torch.no_grad(), net.eval().at_bits(4):
        assert torch.equal(extract_subnet(net, 4)(images), net(images))


def test_norms_called_as_functions_are_told(make_net):
    class Normalises(nn.Module):
        def forward(self, x):
            return F.group_norm(x, 2)

    (note,) = make_net(Net(nn.Conv2d(4, 4, 1), Normalises())).plan.notes
    assert note.startswith("group_norm (group_norm) is a norm called as a function")


@untraced_is_known
def test_a_norm_with_activation_in_an_opaque_block(make_net):
    """It stays whole there; the self-check would find a lost activation."""

    class Skips(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(4, 4, 1)
            self.norm = BatchNormAct2d(4)

        def forward(self, x):
            return self.norm(self.conv(x)) if x.mean() > -100 else x

    net = make_net(Net(Skips()))
    assert len(names_of(net.branches[0], BatchNormAct2d)) == 2, "at 2 and at 4 bits"


def test_a_norm_with_activation_that_runs_twice(make_net):
    """The self-check would find a lost activation."""

    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = BatchNormAct2d(4)
            self.conv = nn.Conv2d(4, 4, 1)

        def forward(self, x):
            return self.norm(self.conv(self.norm(self.conv(x))))

    net = make_net(Net(Twice()))
    called = [node.target for node in net.branches[0].graph.nodes if node.op == "call_module"]
    assert called.count("middle.0.norm") == called.count("middle.0.norm_act") == 2


def test_auxiliary_heads_are_left_out(make_net, images):
    net = make_net(Auxiliary())
    row = rows(net)["aux.2"]
    assert (row.part, row.treatment, row.why) == ("-", "left out", "does not run in evaluation")
    assert net.train()(images).shape == (4, 5)


def test_parallel_first_and_last_layers(make_net):
    net = make_net(ParallelStem())
    assert names_of(net.stem, nn.Conv2d) == ["wide", "point"]
    assert names_of(net.branches[0], CodeLayer) == ["body"]
    assert names_of(net.head, nn.Linear) == ["one.1", "two"]


def test_mixers_are_refused():
    model = MlpMixer(num_classes=5, img_size=8, patch_size=4, num_blocks=1, embed_dim=16)
    with pytest.raises(UnsupportedModelError, match=r"blocks\.0\.mlp_tokens\.fc1 adds up pos"):
        multiquantize(model, [2], input_shape=IMAGE)


def test_flattened_positions_are_no_mixer(make_net):
    """The first linear layer of LeNet adds up channels and positions at once."""
    lenet = nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.ReLU(),
        nn.Conv2d(4, 6, 3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(96, 8),
        nn.ReLU(),
        nn.Linear(8, 5),
    )
    assert names_of(make_net(lenet).branches[0], CodeLayer) == ["2", "5"]


def test_positions_are_followed_through_reshapes(make_net):
    class OverPositions(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(64, 64)

        def forward(self, x):
            shape = x.shape
            return self.fc(x.reshape(shape[0], shape[1], -1)).view(shape)

    with pytest.raises(UnsupportedModelError, match=r"middle\.0\.fc adds up positions"):
        make_net(Net(OverPositions()))


@pytest.mark.parametrize(("channels", "size"), [(1, (64, 48)), (5, (40, 72))])
def test_other_images(channels, size):
    model = timm.create_model("test_resnet", num_classes=5, in_chans=channels)
    net = multiquantize(model, [2, 4], input_shape=(1, channels, *size))
    assert net(torch.randn(2, channels, *size)).shape == (2, 5)
    assert net(torch.randn(2, channels, 96, 96)).shape == (2, 5), "sizes may change afterwards"


def test_a_copy_that_shares_parameters():
    model = TinyNet()
    twin = copy_sharing_parameters(model)
    assert all(a is b for a, b in zip(model.parameters(), twin.parameters(), strict=True))
    assert not any(a is b for a, b in zip(model.buffers(), twin.buffers(), strict=True))
    assert not any(a is b for a, b in zip(model.modules(), twin.modules(), strict=True))
