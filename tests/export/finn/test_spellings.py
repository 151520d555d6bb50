"""Operations that hardware computes under another name, to the bit."""

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

from brevitas_multiquant import calibrate, extract_subnet, multiquantize
from brevitas_multiquant.export import export_finn
from brevitas_multiquant.export.finn.check import branch_names
from brevitas_multiquant.export.finn.lower import lower
from brevitas_multiquant.export.finn.lower.geometry import dense_weight
from brevitas_multiquant.export.finn.project.host import Host

SHAPE = (1, 3, 8, 8)


class Body(nn.Module):
    """A stem, a convolution with a norm of both signs, what is tested, a classifier."""

    def __init__(self, middle, end=None):
        super().__init__()
        self.stem, self.conv = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding="same")
        self.norm, self.last = nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3, padding=1)
        self.fc = nn.Linear(8, 5)
        self.middle, self.end = middle, end or nn.Identity()

    def forward(self, x):
        x = self.middle(self.norm(self.conv(torch.relu(self.stem(x)))))
        x = torch.relu(self.last(x)).mean((2, 3))
        return self.end(self.fc(x))


class Pooled(Body):
    """The classifier behind a pool over the whole map."""

    def forward(self, x):
        x = self.norm(self.conv(torch.relu(self.stem(x))))
        return self.fc(torch.flatten(self.middle(torch.relu(self.last(x))), 1))


class TwoReaders(nn.Module):
    """A norm of both signs that a quantizer and an addition read: as in MobileNetV2."""

    def __init__(self):
        super().__init__()
        self.stem, self.a = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 1)
        self.norm, self.b, self.fc = nn.BatchNorm2d(8), nn.Conv2d(8, 8, 1), nn.Linear(8, 5)

    def forward(self, x):
        x = self.norm(self.a(torch.relu(self.stem(x))))
        return self.fc((x + self.b(x)).mean((2, 3)))


def assert_exact(model, signs=(-1.0, 1.0), **options):
    """The network of integers gives torch's logits, at 2 and 4 bits."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            scales = torch.tensor(signs).repeat(4) * torch.rand(8).add(0.5)
            module.weight.data, module.bias.data = scales, torch.randn(8)
    net = multiquantize(model, [2, 4], profile="finn", input_shape=SHAPE, **options)
    images = torch.randn(8, *SHAPE[1:])
    calibrate(net, [images])
    for bits in net.bits:
        subnet = extract_subnet(net.eval(), bits)
        graph = lower(subnet, branch_names(net, bits), SHAPE)
        with torch.no_grad():
            assert torch.equal(graph.logits(images), subnet(images))


@pytest.mark.parametrize(
    "activation",
    [
        *(nn.ReLU6(), nn.Hardtanh(-0.5, 0.7), nn.LeakyReLU(0.1), nn.PReLU(8), nn.PReLU()),
        *(nn.Hardsigmoid(), nn.Sigmoid(), nn.Tanh(), nn.ELU(), nn.SELU(), nn.Softplus()),
    ],
    ids=lambda module: type(module).__name__,
)
def test_activations_that_only_rise(activation):
    assert_exact(Body(activation))


CALLS = {
    "relu6": F.relu6,
    "clamp": lambda x: x.clamp(0, 6),
    "clamp by name": lambda x: torch.clamp(x, min=0.1, max=1.0),
    "clamp from below": lambda x: x.clamp(min=0.2),
    "leaky_relu": lambda x: F.leaky_relu(x, 0.2),
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "hardsigmoid": F.hardsigmoid,
    "elu": F.elu,
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_activations_called_as_functions(call):
    assert_exact(Body(call))


@pytest.mark.parametrize(
    "end", [nn.Softmax(1), nn.LogSoftmax(-1), lambda x: F.log_softmax(x, dim=1)]
)
def test_a_softmax_of_the_logits_is_the_processors_work(end):
    assert_exact(Body(nn.ReLU(), end))


@pytest.mark.parametrize(
    "pool",
    [
        *(nn.AvgPool2d(8), nn.AdaptiveAvgPool2d((1, 1)), nn.AdaptiveMaxPool2d(1)),
        *(lambda x: F.avg_pool2d(x, 8), lambda x: F.adaptive_max_pool2d(x, 1)),
        *(lambda x: F.adaptive_avg_pool2d(x, 1), lambda x: F.avg_pool2d(x, x.size()[2:])),
        *(lambda x: F.avg_pool2d(x, x.size(3)), lambda x: x.amax((2, 3))),
    ],
)
def test_pools_over_the_whole_map(pool):
    assert_exact(Pooled(pool))


def test_a_classifier_by_convolution_before_the_pool():
    model = Pooled(nn.Sequential(nn.Conv2d(8, 5, 1), nn.AdaptiveAvgPool2d(1)))
    model.fc = nn.Identity()
    assert_exact(model)


def test_a_stem_that_pads_as_tensorflow_does():
    model = Body(nn.ReLU())
    model.stem = timm.layers.Conv2dSame(3, 8, 3, 2)
    assert_exact(model)


def test_a_pool_to_more_positions_than_there_are():
    """As in VGG, whose head was made for larger images."""
    model = Pooled(nn.Sequential(nn.MaxPool2d(8), nn.AdaptiveAvgPool2d(7)))
    model.fc = nn.Sequential(nn.Linear(8 * 49, 16), nn.ReLU(), nn.Linear(16, 5))
    assert_exact(model)


@pytest.mark.parametrize("weights", ["odd", "int2", "ternary"])
@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(8, 8, 3, padding=1, groups=2),
        nn.Conv2d(8, 8, 1, groups=4),
        nn.Sequential(nn.Conv2d(8, 16, 3, padding=1, groups=8), nn.ReLU(), nn.Conv2d(16, 8, 1)),
    ],
)
def test_grouped_convolutions_as_dense_ones(conv, weights):
    assert_exact(Body(nn.Sequential(nn.ReLU(), conv)), weights=weights)


def test_the_dense_weights_of_groups():
    x, weight = torch.randn(2, 6, 5, 5).double(), torch.randn(4, 3, 3, 3).double()
    expected = F.conv2d(x, weight, groups=2)
    # sums of the same terms and zeros, in another order
    assert torch.allclose(F.conv2d(x, dense_weight(weight, 2)), expected, atol=1e-12)


def test_the_price_of_groups_is_told(tmp_path):
    net = multiquantize(
        Body(nn.Conv2d(8, 8, 3, padding=1, groups=2)), [2], profile="finn", input_shape=SHAPE
    )
    calibrate(net, [torch.randn(8, *SHAPE[1:])])
    readme = (export_finn(net.eval(), tmp_path)[2] / "README.md").read_text()
    assert "`branches.0.middle`: 2 groups as a dense convolution" in readme


def test_max_pool_with_ceil_mode_where_it_makes_no_difference():
    assert_exact(Body(nn.Sequential(nn.ReLU(), nn.MaxPool2d(2, ceil_mode=True))))


def test_a_norm_of_positive_scales_behind_a_max_pool():
    middle = nn.Sequential(nn.ReLU(), nn.MaxPool2d(2), nn.BatchNorm2d(8))
    assert_exact(Body(middle), signs=(1.0, 1.0))


def test_a_negative_norm_scale_with_two_readers():
    assert_exact(TwoReaders())


def test_the_exported_processors_side_has_the_softmax(tmp_path):
    net = multiquantize(Body(nn.ReLU(), nn.LogSoftmax(1)), [2], profile="finn", input_shape=SHAPE)
    calibrate(net, [torch.randn(8, *SHAPE[1:])])
    project = export_finn(net.eval(), tmp_path)[2]
    host = Host.load(project / "host.json")
    integers = np.random.default_rng(0).integers(-99, 99, (4, 1, 1, 5))
    # torch and numpy sum exponentials in another order
    assert np.allclose(np.exp(host.logits(integers)).sum(1), 1, atol=1e-6)
