"""The ``finn`` profile: what is quantized where, and that every form of the network agrees."""

import json

import pytest
import timm
import torch
from torch import nn

import brevitas_multiquant.core.cifar_networks  # noqa: F401  (registers the CIFAR networks)
from brevitas_multiquant import (
    InPlaceDistillation,
    calibrate,
    cost,
    extract_subnet,
    load_packed,
    multiquantize,
    save_packed,
)
from brevitas_multiquant.errors import CalibrationError
from brevitas_multiquant.export import export_qonnx
from brevitas_multiquant.nn.merge import merge_outputs
from brevitas_multiquant.nn.switchable import SwitchableQuantizer
from brevitas_multiquant.profiles.finn.modules import (
    BranchMean,
    CodesToValues,
    FixedPointQuantizer,
    QuantizedMerge,
    QuantizedSum,
    SwitchableFixedPoint,
    operand_bits,
)
from brevitas_multiquant.profiles.finn.quantizers import FixedPointLayer, fixed_point_of
from brevitas_multiquant.quant.slices import LayerSlice
from tests.tiny import TinyNet

BITS = (2, 3, 4, 6)


def names_of(part, kind):
    return [name for name, module in part.named_modules() if isinstance(module, kind)]


class Averaging(nn.Module):
    """Averages inside the body, over many positions and over one; no ReLU before the head."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3)
        self.conv = nn.Conv2d(4, 6, 3)
        self.pool = nn.AvgPool2d(2)
        self.last = nn.Conv2d(6, 6, 1)
        self.vector = nn.AdaptiveAvgPool2d(1)
        self.again = nn.AdaptiveAvgPool2d(1)
        self.mix = nn.Conv2d(6, 6, 1)
        self.fc = nn.Linear(6, 5)

    def forward(self, x):
        x = self.pool(torch.relu(self.conv(torch.relu(self.stem(x)))))
        x = self.again(self.vector(self.last(x)))
        return self.fc(self.mix(x).flatten(1))


@pytest.fixture
def finn_net(make_net, images):
    net = make_net(TinyNet(), BITS, profile="finn", branch_init="shuffle")
    calibrate(net, [images])
    return net


def test_what_is_quantized_where(finn_net):
    net = finn_net
    assert names_of(net.stem, FixedPointQuantizer) == ["image_quant"]
    assert names_of(net.stem, SwitchableQuantizer) == ["first_quant"]
    assert names_of(net.stem, FixedPointLayer) == ["stem"]
    assert list(net.halves) == ["2"]
    for branch in (*net.branches, *net.halves.values()):
        # the stem's output is quantized before the branches part: conv1 and shortcut read its codes
        assert names_of(branch, SwitchableQuantizer) == ["input_quants.conv2"]
        assert len(names_of(branch, QuantizedSum)) == 1
        assert not names_of(branch, CodesToValues)
    assert isinstance(net.merge, QuantizedMerge)
    assert not net.merge.sum["2"].act_quant.is_signed
    assert names_of(net.head, SwitchableFixedPoint) == ["input_quants.fc"]
    assert names_of(net.head, BranchMean) == ["branch_mean"]
    assert names_of(net.head, FixedPointLayer) == ["fc"]
    assert {la.treatment for la in net.plan.layers} == {"2-bit weights", "8 bits, shared"}


def test_operands_have_at_most_eight_bits(finn_net):
    for module in finn_net.modules():
        if isinstance(module, QuantizedSum):
            for bits, member in module.items():
                assert fixed_point_of(member).bits == operand_bits(int(bits)) <= 8


def test_averages_in_the_body_read_a_grid(make_net, images):
    net = make_net(Averaging(), (2, 4), profile="finn")
    branch = net.branches[0]
    assert names_of(branch, SwitchableFixedPoint) == [
        "average_quants.pool",
        "average_quants.vector",
    ]
    signed = [q["4"].act_quant.is_signed for q in branch.average_quants.children()]
    assert signed == [False, True]
    assert net.merge.sum["4"].act_quant.is_signed
    calibrate(net, [images])
    with torch.no_grad(), net.eval().at_bits(4):
        assert torch.equal(extract_subnet(net, 4)(images), net(images))


@pytest.mark.parametrize("merge", ["mean", "sum"])
def test_with_quantizers_off_it_merges_as_the_paper(make_net, images, merge):
    paper = make_net(TinyNet(), BITS, merge=merge)
    torch.manual_seed(0)
    finn = make_net(TinyNet(), BITS, merge=merge, profile="finn")
    finn.load_state_dict(paper.state_dict(), strict=False)
    for bits in BITS:
        paper.set_active_bits(bits)
        finn.set_active_bits(bits)
        with torch.no_grad(), paper.floating(), finn.floating():
            assert torch.equal(paper.eval()(images), finn.eval()(images))


@pytest.mark.parametrize("merge", ["mean", "sum"])
@pytest.mark.parametrize("bits", BITS)
def test_subnet_is_equal_to_the_bit(make_net, images, merge, bits):
    net = make_net(TinyNet(), BITS, profile="finn", merge=merge, branch_init="shuffle").eval()
    with pytest.raises(CalibrationError, match=f"at {bits} bits: expected a range initialised"):
        extract_subnet(net, bits)
    calibrate(net, [images])
    with torch.no_grad(), net.at_bits(bits):
        assert torch.equal(extract_subnet(net, bits)(images), net(images))


def test_every_parameter_learns(finn_net, images):
    labels = torch.arange(len(images))
    finn_net.train()
    InPlaceDistillation(finn_net)(images, labels)["loss"].backward()
    without = [name for name, p in finn_net.named_parameters() if p.grad is None]
    assert not without
    ranges = [p.grad for p in finn_net.range_parameters()]
    assert sum(bool(g != 0) for g in ranges) > len(ranges) / 2


def test_calibration_replaces_every_range(finn_net, images):
    before = {n: m.upper.item() for n, m in finn_net.named_modules() if hasattr(m, "observed")}
    calibrate(finn_net, [images * 4])
    image_range = finn_net.stem.image_quant.quantizer
    assert fixed_point_of(image_range).range_impl.upper.item() > 2 * next(
        value for name, value in before.items() if "image_quant" in name
    )


@pytest.fixture(scope="module")
def resnet8():
    torch.manual_seed(0)
    model = timm.create_model("cifar_resnet8", num_classes=10)
    net = multiquantize(model, [3, 4], profile="finn", input_shape=(1, 3, 8, 8))
    calibrate(net, [torch.randn(8, 3, 8, 8)])
    return net.eval()


def test_an_identity_shortcut_reads_the_values_of_the_stem(resnet8):
    for branch in (*resnet8.branches, *resnet8.halves.values()):
        assert names_of(branch, CodesToValues) == ["stem_values"]


def test_packed_file_keeps_it_to_the_bit(resnet8, tmp_path):
    images = torch.randn(4, 3, 8, 8)
    loaded = load_packed(save_packed(resnet8, tmp_path / "net.safetensors"))
    assert loaded.config.profile == "finn"
    for bits in resnet8.bits:
        with torch.no_grad(), loaded.at_bits(bits), resnet8.at_bits(bits):
            assert torch.equal(loaded(images), resnet8(images))


def test_qonnx_is_exact_from_the_image_on(resnet8, tmp_path):
    """No float sum is left, so that every executor has the same codes and the same logits."""
    export_qonnx(resnet8, tmp_path)
    report = json.loads((tmp_path / "export.json").read_text())
    for entry in report["bits"].values():
        for compared in entry["compared"].values():
            assert compared["end_to_end_flipped_codes"] == 0
            assert compared["end_to_end_logit_difference"] == 0


def test_a_half_branch_reads_the_first_channels_of_the_stems_codes(finn_net):
    half = finn_net.halves["2"]
    source, first, *_ = half.graph.nodes
    assert (first.target, first.args) == ("narrow", (source, 1, 0, half.conv1.in_channels))
    assert list(source.users) == [first]
    assert {user.target for user in first.users} == {"conv1", "shortcut"}


def test_a_half_branch_owns_norms_and_ranges_and_borrows_the_rest(finn_net):
    half, whole = finn_net.halves["2"], finn_net.branches[2]
    assert finn_net.selection[3] == (1, 2)
    for name, layer in half.named_modules():
        if isinstance(layer, LayerSlice):
            outputs, inputs = layer.kept
            kept = whole.get_submodule(name).weight[:outputs, :inputs]
            assert torch.equal(layer.weight, kept)
    own = dict(half.named_parameters())
    kinds = ("bn1", "bn2", "input_quants.conv2", "sums.add")
    assert own and all(name.startswith(tuple(f"{kind}.3." for kind in kinds)) for name in own)
    borrowed = {id(p) for p in whole.parameters()}
    assert not borrowed & {id(p) for p in own.values()}


def test_the_mean_counts_a_half_branch_as_the_papers_merge_does(finn_net):
    expected = {bits: len(finn_net.branches_at(bits)) for bits in BITS}
    assert finn_net.head.branch_mean.branches == expected == {2: 1, 3: 2, 4: 2, 6: 3}
    assert finn_net.merge.branches == expected
    outputs = [torch.tensor([1.0]), torch.tensor([2.0])]
    finn_net.set_active_bits(3)
    assert finn_net.head.branch_mean(sum(outputs)) == merge_outputs(outputs, "mean")


@pytest.mark.parametrize("bits", [[3], [5, 8], [2, 3, 4, 6, 8], [2, 3]])
def test_lists_with_odd_bit_widths(make_net, images, bits):
    net = make_net(TinyNet(), bits, profile="finn", branch_init="shuffle").eval()
    calibrate(net, [images])
    for bit in net.bits:
        subnet = extract_subnet(net, bit)
        assert len(subnet.branches) == -(-bit // 2)
        with torch.no_grad(), net.at_bits(bit):
            assert torch.equal(subnet(images), net(images))
    costs, paper = cost(net), cost(make_net(TinyNet(), bits))
    assert {b: c.macs for b, c in costs.items()} == {b: c.macs for b, c in paper.items()}


class Depthwise(nn.Module):
    """The half branch's slice goes through a depthwise convolution."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False)
        self.bn = nn.BatchNorm2d(8)
        self.mix = nn.Conv2d(8, 12, 1)
        self.last = nn.Conv2d(12, 12, 1)
        self.fc = nn.Linear(12, 5)

    def forward(self, x):
        x = torch.relu(self.bn(self.depthwise(torch.relu(self.stem(x)))))
        return self.fc(torch.relu(self.last(torch.relu(self.mix(x)))).mean((2, 3)))


def test_a_depthwise_convolution_reads_a_slice(make_net, images):
    net = make_net(Depthwise(), (2, 3, 4), profile="finn", branch_init="shuffle").eval()
    calibrate(net, [images])
    assert net.halves["1"].depthwise.groups == net.halves["1"].depthwise.in_channels < 8
    with torch.no_grad(), net.at_bits(3):
        assert torch.equal(extract_subnet(net, 3)(images), net(images))
