"""The mean of the branches, which the ``finn`` profile takes behind the merge: once on every path.

The oracle runs the head of the float model, in float64, on the mean of the quantized branch outputs
and compares what every classifier's quantizer reads.
"""

import copy
from functools import cache, partial

import pytest
import timm
import torch
from torch import nn

from brevitas_multiquant import calibrate, extract_subnet, multiquantize
from brevitas_multiquant.profiles.finn.modules import BranchMean, SwitchableFixedPoint
from tests.tiny import IMAGE

BITS = (2, 3, 4, 8)


class Body(nn.Module):
    """Stem and one layer; subclasses say what the head does with 6 channels of 8 x 8."""

    last_activation = True

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.conv = nn.Conv2d(4, 6, 3, padding=1)
        self.mix = nn.Conv2d(6, 6, 3, padding=1)
        self.fc = nn.Linear(6, 5)

    def forward(self, x):
        return self.classify(self.body(x))

    def body(self, x):
        x = self.mix(torch.relu(self.conv(torch.relu(self.stem(x)))))
        return torch.relu(x) if self.last_activation else x


class Twins(Body):
    """Two classifiers read one vector."""

    def __init__(self) -> None:
        super().__init__()
        self.fc2 = nn.Linear(6, 5)

    def classify(self, x):
        x = x.mean((2, 3))
        return (self.fc(x) + self.fc2(x)) / 2


class MeanAndMax(Twins):
    """One classifier behind a mean, one behind a maximum."""

    def classify(self, x):
        return self.fc(x.mean((2, 3))) + self.fc2(x.amax((2, 3)))


class Normed(Twins):
    """A norm of its own before each classifier, as in RepViT; no ReLU before the head."""

    last_activation = False

    def __init__(self) -> None:
        super().__init__()
        self.bn, self.bn2 = nn.BatchNorm1d(6), nn.BatchNorm1d(6)

    def classify(self, x):
        x = torch.flatten(nn.functional.adaptive_avg_pool2d(x, 1), 1)
        return (self.fc(self.bn(x)) + self.fc2(self.bn2(x))) / 2


class NormedMap(Twins):
    """A norm and a sigmoid of the map; the second classifier reads the sum's pool."""

    def __init__(self) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(6)

    def classify(self, x):
        return self.fc(torch.sigmoid(self.bn(x)).mean((2, 3))) + self.fc2(x.mean((2, 3)))


class TwoInARow(Body):
    """The second linear layer reads the first, which is divided already."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.Linear(6, 6)

    def body(self, x):
        return super().body(x).mean((2, 3))

    def classify(self, x):
        return self.fc(torch.relu(self.hidden(x)))


class Shifted(Twins):
    """A constant is added, a path is weighed by a gate, and sizes are read."""

    def classify(self, x):
        pooled = nn.functional.avg_pool2d(x, x.size()[2:]).flatten(1)
        return self.fc(pooled + 1.0) + self.fc2(pooled * torch.tanh(pooled))


class Joined(Twins):
    """Mean and maximum beside each other for one classifier, their sum for the other."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(12, 5)

    def classify(self, x):
        mean, largest = x.mean((2, 3)), x.amax((2, 3))
        return self.fc(torch.cat([mean, largest], 1)) + self.fc2(mean + largest)


HEADS = [Twins, MeanAndMax, Normed, NormedMap, TwoInARow, Shifted, Joined]


def atol_of(head):
    """Of fp32 sums; half a step of 8-bit operands where a head averages or adds what is no sum."""
    return {NormedMap: 2**-8, Joined: 2**-5}.get(head, 1e-5)


def trained(model):
    """Norms with statistics and factors of their own, as after training."""
    generator = torch.Generator().manual_seed(3)
    for norm in model.modules():
        if isinstance(norm, nn.modules.batchnorm._BatchNorm):
            for tensor in (norm.running_mean, norm.bias.data):
                tensor.copy_(torch.randn(tensor.shape, generator=generator))
            for tensor in (norm.running_var, norm.weight.data):
                tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
    return model


@cache
def build(make, merge="mean", size=IMAGE[-1]):
    """The model and its network; not to be changed."""
    torch.manual_seed(1)
    model = make()
    net = multiquantize(
        trained(model),
        BITS,
        profile="finn",
        merge=merge,
        input_shape=(1, 3, size, size),
        branch_init="shuffle",
        head="hidden" if isinstance(model, TwoInARow) else None,
    )
    generator = torch.Generator().manual_seed(5)
    calibrate(net, [torch.randn(8, 3, size, size, generator=generator)])
    return model, net.eval()


def read_by_classifiers(net, images):
    """Classifier -> what its quantizer reads; and the sum that the head reads."""
    read, handles = {}, []
    for name, module in net.head.named_modules():
        if name.startswith("input_quants.") and isinstance(module, SwitchableFixedPoint):
            layer = name.removeprefix("input_quants.")

            def keep(_module, inputs, layer=layer):
                read[layer] = inputs[0]

            handles.append(module.register_forward_pre_hook(keep))
    handles.append(net.head.register_forward_pre_hook(lambda _, i: read.__setitem__("", i[0])))
    with torch.no_grad():
        net(images)
    for handle in handles:
        handle.remove()
    return read.pop(""), read


def float_readings(net, model, merged):
    """The same of the author's forward on the mean of the branches, in float64.

    Layers and norms are the network's own: the second layer in a row reads codes, and a norm has
    statistics for each bit-width.
    """
    read = {}
    head = copy.deepcopy(model).double().eval()
    for name, module in head.named_modules():
        if not hasattr(net.head, name) or not isinstance(
            module, (nn.Linear, nn.BatchNorm2d, nn.BatchNorm1d)
        ):
            continue

        def through_ours(_module, inputs, _output, name=name):
            x = inputs[0].float()
            if isinstance(_module, nn.Linear):
                read[name] = inputs[0]
                x = net.head.get_submodule(f"input_quants.{name}")(x)
            return net.head.get_submodule(name)(x).double()

        module.register_forward_hook(through_ours)
    with torch.no_grad():
        head.classify(merged)
    return read


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("head", HEADS)
def test_every_classifier_reads_the_mean(head, bits, images):
    model, net = build(head)
    net.set_active_bits(bits)
    total, ours = read_by_classifiers(net, images)
    expected = float_readings(net, model, total.double() / len(net.selection[bits]))
    assert ours.keys() == expected.keys()
    for name, values in ours.items():
        # fp32 sums of 64 terms and one division against float64
        torch.testing.assert_close(values.double(), expected[name], rtol=1e-5, atol=atol_of(head))
    with torch.no_grad():
        assert torch.equal(extract_subnet(net, bits)(images), net(images))


@pytest.mark.parametrize("head", HEADS)
def test_a_sum_is_not_divided(head, images):
    model, net = build(head, "sum")
    assert not any(isinstance(module, BranchMean) for module in net.head.modules())
    net.set_active_bits(4)
    total, ours = read_by_classifiers(net, images)
    expected = float_readings(net, model, total.double())
    for name, values in ours.items():
        torch.testing.assert_close(values.double(), expected[name], rtol=1e-5, atol=atol_of(head))


@pytest.mark.parametrize(
    ("head", "count"),
    [(Twins, 1), (MeanAndMax, 2), (Normed, 1), (NormedMap, 2), (TwoInARow, 1), (Joined, 2)],
)
def test_integers_stay_integers_as_long_as_they_can(head, count):
    _, net = build(head)
    means = [node for node in net.head.graph.nodes if "branch_mean" in str(node.target)]
    assert len(means) == count


def test_both_heads_of_repvit_read_the_mean():
    model = partial(timm.create_model, "repvit_m0_9", num_classes=10)
    _, net = build(model, size=64)
    images = torch.randn(1, 3, 64, 64)
    net.set_active_bits(8)
    total, ours = read_by_classifiers(net, images)
    mean = total.mean((2, 3)) / 4
    assert len(ours) == 2
    for name, values in ours.items():
        norm = net.head.get_submodule(f"{name.rpartition('.')[0]}.bn")
        with torch.no_grad():  # the same operations in another order
            torch.testing.assert_close(values, norm(mean), rtol=1e-5, atol=1e-5)
