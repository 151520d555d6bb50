"""Operations that hardware computes under another name, to the bit."""

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

from brevitas_multiquant import calibrate, extract_subnet, multiquantize
from brevitas_multiquant.export import check_finn, export_finn
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


class Pixels(Body):
    """A class for each position."""

    def __init__(self):
        super().__init__(nn.ReLU())
        self.fc = nn.Conv2d(8, 5, 1)

    def forward(self, x):
        x = self.middle(self.norm(self.conv(torch.relu(self.stem(x)))))
        return torch.softmax(self.fc(torch.relu(self.last(x))), 1)


class Named(Body):
    """Logits in a dict, as torchvision's segmentation has them."""

    def forward(self, x):
        return {"out": super().forward(x)}


class TwoReaders(nn.Module):
    """A norm of both signs that a quantizer and an addition read: as in MobileNetV2."""

    def __init__(self):
        super().__init__()
        self.stem, self.a = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 1)
        self.norm, self.b, self.fc = nn.BatchNorm2d(8), nn.Conv2d(8, 8, 1), nn.Linear(8, 5)

    def forward(self, x):
        x = self.norm(self.a(torch.relu(self.stem(x))))
        return self.fc((x + self.b(x)).mean((2, 3)))


def assert_exact(model, signs=(-1.0, 1.0), bits=(2, 4), **options):
    """The network of integers gives torch's logits."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            scales = torch.tensor(signs).repeat(4) * torch.rand(8).add(0.5)
            module.weight.data, module.bias.data = scales, torch.randn(8)
    net = multiquantize(model, bits, profile="finn", input_shape=SHAPE, **options)
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
        *(nn.Hardshrink(), nn.Softshrink(), nn.Tanhshrink(), nn.Threshold(0.1, 0.0), nn.RReLU()),
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
    "celu": lambda x: F.celu(x, 0.7),
    "selu in place": F.selu_,
    "softsign": F.softsign,
    "logsigmoid": F.logsigmoid,
    "softshrink": F.softshrink,
    "exp": torch.exp,
    "clamp_min": lambda x: x.clamp_min(0.1),
    "clamp_max": lambda x: torch.clamp_max(torch.relu(x), 1.0),
    "prelu": lambda x: F.prelu(x, torch.full((8,), 0.1)),
    "largest of it and a number": lambda x: torch.maximum(x, torch.zeros(1)),
    "largest of it and zeros": lambda x: torch.max(x, torch.zeros_like(x)),
    "leaky by hand": lambda x: torch.max(x, 0.1 * x),
}
"""Of single numbers, that rise."""
BENDING = {
    "absolute": torch.abs,
    "threshold that jumps down": lambda x: F.threshold(x, 0.1, 0.5),
    "square": lambda x: x**2,
    "cube": lambda x: x.pow(3),
    "sine": torch.sin,
    "leaky that falls": lambda x: F.leaky_relu(x, -0.2),
}
KEPT = {
    "clone": lambda x: torch.relu(x.clone()),
    "detach": lambda x: torch.relu(x).detach(),
    "float": lambda x: torch.relu(x).float(),
    "to": lambda x: torch.relu(x).to(torch.float32),
    "dropout of selu networks": nn.Sequential(nn.SELU(), nn.AlphaDropout()),
}
"""What does nothing in evaluation."""
POSITIONS = {
    "padding of an even kernel": nn.Conv2d(8, 8, 4, padding="same"),
    "padding of an uneven kernel": nn.Conv2d(8, 8, (6, 4), padding="same"),
    "depthwise, even": nn.Conv2d(8, 8, 2, padding="same", groups=8),
    "constant padding": nn.Sequential(nn.ReLU(), nn.ConstantPad2d(1, 0.0)),
    "max pool of one": nn.Sequential(nn.ReLU(), nn.MaxPool2d(1, 2)),
    "average pool of one": nn.AvgPool2d(1, 2),
    "every other position": nn.Upsample(scale_factor=0.5),
    "nearest-exact": nn.Upsample(scale_factor=2, mode="nearest-exact"),
    "max pool by torch": lambda x: torch.max_pool2d(x, 2),
    "means of rows": lambda x: F.interpolate(x.mean(3, keepdim=True), size=(8, 8)) + x,
    "gate of flattened means": lambda x: x * torch.sigmoid(x.flatten(2).mean(2))[:, :, None, None],
}
ZEROS = {
    "zeros_like": lambda x: torch.cat([x[:, :4], torch.zeros_like(x[:, :4])], 1),
    "zeros": lambda x: torch.cat([x[:, :4], torch.zeros((x.size(0), 4, 8, 8))], 1),
    "new_zeros": lambda x: torch.cat([x.new_zeros(x.size(0), 4, 8, x.size(3)), x[:, :4]], 1),
}
"""Shortcuts of more channels."""
ALL = {**CALLS, **BENDING, **KEPT, **POSITIONS}


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("call", ALL.values(), ids=ALL)
def test_what_is_called_by_other_names(call):
    assert_exact(Body(call))


@pytest.mark.parametrize("call", ZEROS.values(), ids=ZEROS)
def test_zeros_beside_channels(call):
    assert_exact(Body(lambda x: call(torch.relu(x))))


@pytest.mark.parametrize(
    "end",
    [
        *(nn.Softmax(1), nn.LogSoftmax(-1), lambda x: F.log_softmax(x, dim=1)),
        *(nn.Sigmoid(), lambda x: torch.sigmoid(x).squeeze()),
    ],
)
def test_a_softmax_or_sigmoid_of_the_logits_is_the_processors_work(end):
    assert_exact(Body(nn.ReLU(), end))


@pytest.mark.parametrize("bits", [[2, 4], [6]])
def test_a_norm_behind_the_classifier(bits):
    """As in FINN's own perceptrons: what is left behind it is the mean of branches."""
    assert_exact(Body(nn.ReLU(), nn.BatchNorm1d(5)), bits=bits)


def test_a_softmax_of_classes_of_pixels():
    assert_exact(Pixels())


def test_a_softmax_in_the_middle_is_refused():
    net = multiquantize(
        Pooled(lambda x: x.mean((2, 3)).softmax(1)), [2], profile="finn", input_shape=SHAPE
    )
    (problem,) = check_finn(net)
    assert "use a sigmoid as gate" in problem.advice


@pytest.mark.parametrize(
    "pool",
    [
        *(nn.AvgPool2d(8), nn.AdaptiveAvgPool2d((1, 1)), nn.AdaptiveMaxPool2d(1)),
        *(lambda x: F.avg_pool2d(x, 8), lambda x: F.adaptive_max_pool2d(x, 1)),
        *(lambda x: F.adaptive_avg_pool2d(x, 1), lambda x: F.avg_pool2d(x, x.size()[2:])),
        *(lambda x: F.avg_pool2d(x, x.size(3)), lambda x: x.amax((2, 3))),
        *(lambda x: x.mean(3).mean(2), lambda x: x.mean(2, True).mean(-1, True)),
        *(lambda x: x.flatten(2).mean(2), lambda x: x.view(x.size(0), x.size(1), -1).mean(-1)),
        *(lambda x: x.amax(3).amax(2), lambda x: x.max(3)[0].max(2)[0]),
        *(lambda x: x.flatten(2).max(-1).values, lambda x: torch.max(x.flatten(2), 2)[0]),
        *(lambda x: x.mean((2, 3)) + x.amax((2, 3)),),
    ],
)
def test_pools_over_the_whole_map(pool):
    assert_exact(Pooled(pool))


@pytest.mark.parametrize(
    "largest",
    [
        *(lambda x: x.amax(1, keepdim=True), lambda x: x.max(1, keepdim=True).values),
        lambda x: x.max(1, keepdim=True)[0],
    ],
)
def test_a_maximum_over_channels_is_refused_by_name(largest):
    model = Pooled(lambda x: (x * torch.sigmoid(largest(x))).mean((2, 3)))
    net = multiquantize(model, [2], profile="finn", input_shape=SHAPE)
    assert any("max has no dataflow layer" in one.advice for one in check_finn(net))


def test_the_only_output_in_a_dict(tmp_path):
    net = multiquantize(Named(nn.ReLU()), [2], profile="finn", input_shape=SHAPE)
    calibrate(net, [torch.randn(8, *SHAPE[1:])])
    (project,) = export_finn(net.eval(), tmp_path, estimate=False).values()
    assert np.load(project / "expected_output.npy").shape[-1] == 5


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
