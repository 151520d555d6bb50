"""A subnet is the network at one bit-width, to the bit, out of stock Brevitas layers alone."""

import brevitas.nn
import pytest
import torch
from torch import nn

from brevitas_multiquant import calibrate, extract_subnet, multiquantize
from brevitas_multiquant.errors import BitWidthError, CalibrationError
from brevitas_multiquant.nn.network import MultiQuantNet
from brevitas_multiquant.nn.switchable import ScaleShiftNorm, Switchable
from brevitas_multiquant.quant.layers import CodeLayer
from brevitas_multiquant.quant.ranges import LearnedRange
from brevitas_multiquant.training.calibrate import activation_ranges
from tests.zoo import SHAPE, ZOO

OURS = (MultiQuantNet, Switchable, ScaleShiftNorm, CodeLayer, LearnedRange)
MODELS = [
    "timm resnet",
    "timm mobilenetv2",
    "timm mobilenetv3",  # squeeze and excitation, hard swish
    "timm resnetv2",  # standardised weights, group norm
    "timm efficientnet",
    "torchvision densenet",  # concatenation
    "torchvision vgg",  # biases, no norm
    "torchvision convnext",  # layer norm, layer scale
]


def uneven(net):
    """Gives every norm and range a value of its own, as training would."""
    generator = torch.Generator().manual_seed(5)

    def spread(value):
        return value * (0.95 + 0.1 * torch.rand(value.shape, generator=generator))

    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, LearnedRange):
                module.upper.copy_(spread(module.upper))
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.running_mean.copy_(spread(module.running_mean + 0.1))
                module.running_var.copy_(spread(module.running_var))
                module.weight.copy_(spread(module.weight))
                module.bias.copy_(spread(module.bias + 0.1))
    return net


def check_equal(net, images):
    net.eval()
    outputs = []
    for bits in net.bits:
        subnet = extract_subnet(net, bits)
        with torch.no_grad(), net.at_bits(bits):
            outputs.append(net(images))
            assert torch.equal(subnet(images), outputs[-1]), f"{bits} bits"
        assert len(subnet.branches) == len(net.selection[bits])
    assert not torch.equal(outputs[0], outputs[-1])


@pytest.mark.parametrize("name", MODELS)
def test_equal_to_the_bit(name):
    net = multiquantize(ZOO[name](), [2, 4], selection={2: [1], 4: [0, 1]}, input_shape=SHAPE)
    images = torch.randn(2, *SHAPE[1:])
    calibrate(net, [images])
    check_equal(uneven(net), images)


@pytest.mark.parametrize("merge", ["mean", "sum"])
def test_equal_at_every_bit_width(make_net, images, merge):
    net = make_net(bits=(2, 4, 6, 8, 10), merge=merge)
    calibrate(net, [images])
    check_equal(uneven(net), images)


def test_range_that_is_not_one_is_guarded_alike(net, images):
    """u below l, near and far from zero: network and subnet widen the range in the same way."""
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, LearnedRange):
                module.upper.copy_(module.lower - 1)
        first = next(activation_ranges(net.branches[0], 2))
        first.lower.fill_(300.0)
    net.eval()
    for bits in net.bits:
        with torch.no_grad(), net.at_bits(bits):
            output = net(images)
            assert torch.isfinite(output).all()
            assert torch.equal(extract_subnet(net, bits)(images), output)


@pytest.mark.parametrize("bits", [2, 4])
def test_nothing_of_ours_is_left_but_constants(net, bits):
    subnet = extract_subnet(net, bits)
    assert not [name for name, m in subnet.named_modules() if isinstance(m, OURS)]
    ours = {
        type(m).__name__
        for m in subnet.modules()
        if type(m).__module__.startswith("brevitas_multiquant.")
    }
    assert ours == {"Subnet", "Merge", "RangeToCodes", "OutputScale", "ScaleShift"}
    stock = [m for m in subnet.modules() if type(m) is brevitas.nn.QuantConv2d]
    assert len(stock) == 3 * len(net.selection[bits])
    for conv in stock:
        assert set(conv.weight.unique().tolist()) <= {-3.0, -1.0, 1.0, 3.0}
        assert torch.equal(conv.quant_weight().value, conv.weight)
        assert conv.quant_weight().scale.item() == 1.0
    identities = [m for m in subnet.modules() if type(m) is brevitas.nn.QuantIdentity]
    assert len(identities) == 2 * len(net.selection[bits])
    assert all(m.act_quant.bit_width().item() == bits for m in identities)
    assert not subnet.training
    assert not any(p.requires_grad for p in subnet.parameters())


def test_the_network_is_not_changed_nor_shared(net, images):
    state = {name: value.clone() for name, value in net.state_dict().items()}
    modes = [module.training for module in net.modules()]
    subnet = extract_subnet(net, 2)
    with torch.no_grad():
        for tensor in (*subnet.parameters(), *subnet.buffers()):
            if tensor.is_floating_point():
                tensor.add_(1.0)
    assert net.active_bits == 4
    assert [module.training for module in net.modules()] == modes
    assert all(torch.equal(net.state_dict()[name], value) for name, value in state.items())


def test_a_norm_without_statistics_uses_those_of_the_batch(make_net, images):
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.Conv2d(4, 4, 3),
        nn.BatchNorm2d(4, track_running_stats=False),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 5),
    )
    net = make_net(model)
    calibrate(net, [images])
    check_equal(net, images)


def test_needs_ranges(make_net):
    with pytest.raises(
        CalibrationError, match=r"input_quants\.conv1 at 2 bits: expected a range initialised"
    ):
        extract_subnet(make_net(), 2)


@pytest.mark.parametrize("bits", [3, 8, None])
def test_unknown_bit_width(net, bits):
    with pytest.raises(BitWidthError, match=r"extract_subnet: expected one of .* \[2, 4\] .* got"):
        extract_subnet(net, bits)
