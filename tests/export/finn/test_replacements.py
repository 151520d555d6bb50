"""What is refused is told what to use instead, and that maps, to the bit."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from brevitas_multiquant import calibrate, extract_subnet, multiquantize
from brevitas_multiquant.export import check_finn
from brevitas_multiquant.export.finn.check import branch_names
from brevitas_multiquant.export.finn.lower import lower
from tests.export.finn.everyday import Everyday, block, in_order

SHAPE = (1, 3, 8, 8)


def between(*layers):
    """Layers from 8 to 8 channels between blocks."""
    return lambda: in_order(block(8, 8), *layers, block(8, 8))


def called(function, **layers):
    """A function of the network and the map in place of them."""
    return lambda: Everyday(function, a=block(8, 8), **layers)


def with_gate(gate):
    return called(lambda net, x: net.a(x) * gate(net.b(x)), b=nn.Conv2d(8, 8, 1))


def ended(end):
    """The pool over the whole map in the author's words."""
    return called(lambda net, x: end(net.a(x))[:, :, None, None], b=nn.Identity())


def _selected(net, x):
    """Two branches weighed against each other: a selective kernel."""
    both = torch.stack([net.a(x), net.b(x)], 1)
    return (both * both.mean((3, 4), keepdim=True).softmax(1)).sum(1)


def _weighed(net, x):
    left, right = net.a(x), net.b(x)
    gate = torch.sigmoid((left + right).mean((2, 3), keepdim=True))
    return left * gate + right


REPLACEMENTS = {
    "layer norm": (between(nn.GroupNorm(1, 8)), "nn.BatchNorm2d", between(nn.BatchNorm2d(8))),
    "instance norm": (between(nn.InstanceNorm2d(8)), "nn.BatchNorm2d", between(nn.BatchNorm2d(8))),
    "upsampling that interpolates": (
        between(nn.Upsample(scale_factor=2, mode="bilinear")),
        "mode='nearest' with a whole factor",
        between(nn.Upsample(scale_factor=2, mode="nearest")),
    ),
    "upsampling by a fraction": (
        between(nn.Upsample(scale_factor=1.5)),
        "mode='nearest' with a whole factor",
        between(nn.Upsample(scale_factor=3)),
    ),
    "transposed convolution": (
        between(nn.ConvTranspose2d(8, 8, 2, 2), nn.ReLU()),
        "nn.Upsample(scale_factor=2) and a convolution",
        between(nn.Upsample(scale_factor=2), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU()),
    ),
    "pixel shuffle": (
        between(nn.Conv2d(8, 32, 1), nn.PixelShuffle(2), nn.ReLU()),
        "nn.Upsample(scale_factor=2) and a convolution",
        between(nn.Upsample(scale_factor=2), nn.Conv2d(8, 8, 1), nn.ReLU()),
    ),
    "reflecting padding": (
        between(nn.Conv2d(8, 8, 3, padding=1, padding_mode="reflect"), nn.ReLU()),
        "use zeros",
        between(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU()),
    ),
    "max pool that skips": (
        between(nn.MaxPool2d(2, 3)),
        "use an equal kernel",
        between(nn.MaxPool2d(3)),
    ),
    "max pool with dilation": (
        between(nn.MaxPool2d(2, dilation=2)),
        "use one without",
        between(nn.MaxPool2d(2)),
    ),
    "max pool to uneven windows": (
        between(nn.AdaptiveMaxPool2d(3)),
        "use nn.MaxPool2d",
        between(nn.MaxPool2d(3)),
    ),
    "average pool to uneven windows": (
        between(nn.AdaptiveAvgPool2d(3)),
        "or a global pool",
        between(nn.AdaptiveAvgPool2d(1)),
    ),
    "average pool with a divisor": (
        between(nn.AvgPool2d(2, divisor_override=3)),
        "leave it out",
        between(nn.AvgPool2d(2)),
    ),
    "average pool whose padding does not count": (
        between(nn.AvgPool2d(3, 2, 1, count_include_pad=False)),
        "leave count_include_pad=True",
        between(nn.AvgPool2d(3, 2, 1)),
    ),
    "average pool over the edge": (
        between(nn.AvgPool2d(3, 2, ceil_mode=True)),
        "leave it out",
        between(nn.AvgPool2d(3, 2)),
    ),
    "root of sums of squares": (
        between(nn.LPPool2d(2, 2)),
        "use nn.AvgPool2d or nn.MaxPool2d",
        between(nn.AvgPool2d(2)),
    ),
    "cropping": (
        called(lambda net, x: net.a(F.pad(x, (-1, -1, -1, -1)))),
        "leave it out",
        called(lambda net, x: net.a(x)),
    ),
    "zeros that a norm moves": (
        between(nn.ZeroPad2d(1), nn.BatchNorm2d(8), nn.ReLU()),
        "behind an activation that starts at 0",
        between(nn.BatchNorm2d(8), nn.ReLU(), nn.ZeroPad2d(1)),
    ),
    "sum of a map": (
        ended(lambda x: x.sum((2, 3))),
        "x.mean((2, 3))",
        ended(lambda x: x.mean((2, 3))),
    ),
    "gate for each position": (
        with_gate(lambda x: torch.sigmoid(x[:, :1])),
        "a number for each channel",
        with_gate(lambda x: torch.sigmoid(x.mean((2, 3), keepdim=True))),
    ),
    "gate by softmax": (
        with_gate(lambda x: x.mean((2, 3), keepdim=True).softmax(1)),
        "a sigmoid as gate",
        with_gate(lambda x: torch.sigmoid(x.mean((2, 3), keepdim=True))),
    ),
    "branches weighed against each other": (
        called(_selected, b=block(8, 8)),
        "x + y, or torch.cat of channels",
        called(_weighed, b=block(8, 8)),
    ),
    "softmax in the middle": (
        ended(lambda x: x.mean((2, 3)).softmax(1)),
        "a sigmoid as gate",
        ended(lambda x: torch.sigmoid(x.mean((2, 3)))),
    ),
    "addition with a factor": (
        called(lambda net, x: torch.add(net.a(x), x, alpha=0.5)),
        "use x + alpha * y",
        called(lambda net, x: net.a(x) + 0.5 * x),
    ),
    "mirrored padding": (
        between(nn.ReflectionPad2d(1)),
        "use nn.ZeroPad2d",
        between(nn.ZeroPad2d(1)),
    ),
    "padding with ones": (
        between(nn.ConstantPad2d(1, 1.0)),
        "use zeros",
        between(nn.ConstantPad2d(1, 0.0)),
    ),
    "rolling": (
        called(lambda net, x: net.a(torch.roll(x, 1, 3))),
        "use a convolution",
        called(lambda net, x: net.a(x)),
    ),
}


def network_of(make):
    torch.manual_seed(0)
    net = multiquantize(make(), [2, 4], profile="finn", input_shape=SHAPE)
    with torch.no_grad():
        for norm in net.modules():
            if isinstance(norm, nn.BatchNorm2d):
                norm.weight.normal_(1.0, 0.7)
                norm.bias.normal_(0.0, 0.3)
    calibrate(net, [torch.randn(8, *SHAPE[1:])])
    return net.eval()


@pytest.mark.parametrize("name", REPLACEMENTS)
def test_the_replacement_maps(name):
    refused, words, instead = REPLACEMENTS[name]
    violations = check_finn(network_of(refused))
    assert violations and any(words in violation.advice for violation in violations)
    net = network_of(instead)
    assert check_finn(net) == []
    images = torch.randn(4, *SHAPE[1:])
    for bits in net.bits:
        subnet = extract_subnet(net, bits)
        graph = lower(subnet, branch_names(net, bits), SHAPE)
        with torch.no_grad():
            assert torch.equal(graph.logits(images), subnet(images))
