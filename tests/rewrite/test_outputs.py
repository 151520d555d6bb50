"""Networks that return something else than logits: maps, tuples, dicts, features, residuals."""

import copy
import pickle
from collections import OrderedDict
from typing import NamedTuple

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

from brevitas_multiquant import calibrate, extract_subnet, multiquantize
from brevitas_multiquant.core.output_structure import OutputStructure
from brevitas_multiquant.cost import cost
from brevitas_multiquant.errors import SelfCheckError, UnsupportedModelError
from brevitas_multiquant.quant.layers import WEIGHTED

SHAPE = (1, 3, 16, 16)


class Pair(NamedTuple):
    first: torch.Tensor
    others: list


class Dense(nn.Module):
    """Stem, two layers, two maps of classes; subclasses say what is returned."""

    def __init__(self):
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(3, 6, 3, 2, 1, bias=False), nn.BatchNorm2d(6)
        self.conv2, self.norm2 = nn.Conv2d(6, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8)
        self.conv3 = nn.Conv2d(8, 8, 3, padding=2, dilation=2)
        self.classifier = nn.Conv2d(8, 3, 1)
        self.auxiliary = nn.Conv2d(8, 3, 1)

    def forward(self, x):
        middle = F.relu(self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x))))))
        last = F.relu(self.conv3(middle))
        return self.output(x, middle, last)


class OneMap(Dense):
    def output(self, x, middle, last):
        return F.interpolate(self.classifier(last), scale_factor=4.0, mode="bilinear")


class OrderedMaps(Dense):
    def output(self, x, middle, last):
        maps = OrderedDict(out=self.classifier(last), aux=self.auxiliary(middle))
        return OrderedDict((k, F.interpolate(v, scale_factor=4)) for k, v in maps.items())


class OrderedMapsOfTheImagesSize(Dense):
    def output(self, x, middle, last):
        maps = OrderedDict(out=self.classifier(last), aux=self.auxiliary(middle))
        return OrderedDict((k, F.interpolate(v, size=x.shape[-2:])) for k, v in maps.items())


class Nested(Dense):
    def output(self, x, middle, last):
        return Pair(self.classifier(last), [self.auxiliary(middle), {"features": last}, None, 3])


class Residual(Dense):
    """An image in, an image out: what the head adds to is the image itself."""

    def output(self, x, middle, last):
        return [x + F.interpolate(self.classifier(last), scale_factor=4)]


class Features(Dense):
    """No output layer: every output is made in the branches."""

    def output(self, x, middle, last):
        return middle, last + middle


CASES = {
    OneMap: (["conv1"], ["classifier"], torch.Tensor, (3, 16, 16)),
    OrderedMaps: (["conv1"], ["classifier", "auxiliary"], OrderedDict, (3, 16, 16)),
    Nested: (["conv1"], ["classifier", "auxiliary"], Pair, (3, 4, 4)),
    Residual: (["conv1"], ["classifier"], list, (3, 16, 16)),
    Features: (["conv1"], [], tuple, (8, 4, 4)),
}


def layers_of(part):
    return [name for name, module in part.named_modules() if isinstance(module, WEIGHTED)]


@pytest.mark.parametrize("kind", CASES)
def test_what_a_forward_returns_is_returned(kind):
    stem, head, container, shape = CASES[kind]
    model = kind()
    net = multiquantize(model, [2, 4], input_shape=SHAPE)
    assert layers_of(net.stem) == stem and sorted(layers_of(net.head)) == sorted(head)
    images = torch.randn(2, *SHAPE[1:])
    _same_as_the_model(net.eval(), model.eval(), images)
    calibrate(net.train(), [images])
    net.eval()
    for bits in net.bits:
        with torch.no_grad(), net.at_bits(bits):
            output, plain = net(images), extract_subnet(net, bits)(images)
        assert type(output) is type(plain) is container
        assert OutputStructure.of(output) == OutputStructure.of(plain) == net.structure
        pairs = list(zip(net.structure.tensors(output), net.structure.tensors(plain), strict=True))
        assert pairs[0][0].shape[1:] == shape
        assert all(torch.equal(one, other) for one, other in pairs)
    costs = cost(net)
    assert costs[2].bitops < costs[4].bitops


def _same_as_the_model(net, model, images):
    with torch.no_grad(), net.floating(), net.at_bits(2):
        mine, theirs = net(images), model(images)
    assert OutputStructure.of(mine) == OutputStructure.of(theirs)
    pairs = zip(net.structure.tensors(mine), net.structure.tensors(theirs), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)


@pytest.mark.parametrize(
    ("output", "structure"),
    [
        (lambda y: y.chunk(3, 1), (0, 0, 0)),
        (lambda y: {"box": y.split([1, 2], dim=1), "all": y}, {"box": (0, 0), "all": 0}),
        (lambda y: list(y.unbind(1)), [0, 0, 0]),
        (lambda y: torch.tensor_split(y, 3, dim=1), (0, 0, 0)),
    ],
    ids=["chunk", "split", "unbind", "tensor_split"],
)
def test_pieces_of_a_tensor_are_outputs(output, structure):
    class Split(Dense):
        def output(self, x, middle, last):
            return output(self.classifier(last))

    model, images = Split(), torch.randn(2, *SHAPE[1:])
    net = multiquantize(model, [2, 4], input_shape=SHAPE)
    assert net.structure.spec == OutputStructure.of(structure).spec
    _same_as_the_model(net.eval(), model.eval(), images)


def test_what_branches_hand_on_is_not_merged():
    """A sum of branches is no sum of images."""
    net = multiquantize(Residual(), [4], input_shape=SHAPE, merge="sum")
    images = torch.randn(1, *SHAPE[1:])
    with torch.no_grad(), net.eval().floating():
        (output,) = net(images)
        net.head.get_submodule("classifier").weight.zero_()
        net.head.get_submodule("classifier").bias.zero_()
        (without,) = net(images)
    assert torch.equal(without, images) and not torch.equal(output, images)


def test_copies_pickles_and_views_return_the_same():
    net = multiquantize(Nested(), [2, 4], input_shape=SHAPE)
    images = torch.randn(2, *SHAPE[1:])
    calibrate(net, [images])
    expected = net.eval()(images)
    for other in (copy.deepcopy(net), pickle.loads(pickle.dumps(net)), net.view(4)):
        output = other(images)
        assert type(output) is Pair and output.others[2:] == [None, 3]
        assert torch.equal(output.first, expected.first)
        assert torch.equal(output.others[1]["features"], expected.others[1]["features"])


class MoreInTraining(Dense):
    def output(self, x, middle, last):
        maps = {"out": self.classifier(last)}
        if self.training:
            maps["aux"] = self.auxiliary(middle)
        return maps


class OtherInTraining(Dense):
    def output(self, x, middle, last):
        return {"losses": last.sum()} if self.training else self.classifier(last)


def test_outputs_that_are_there_in_training_only():
    net = multiquantize(MoreInTraining(), [2, 4], input_shape=SHAPE)
    assert net.structure.names == ("out",)
    assert {row.name: row.treatment for row in net.plan.layers}["auxiliary"] == "left out"
    with pytest.raises(SelfCheckError, match=r"in training mode, got Tensor for {'losses': Tens"):
        multiquantize(OtherInTraining(), [2, 4], input_shape=SHAPE)


def test_the_cut_as_named():
    model = OrderedMaps()
    net = multiquantize(model, [2, 4], input_shape=SHAPE, stem="conv2", head="conv3")
    assert layers_of(net.stem) == ["conv1", "conv2"]
    assert net.plan.head_starts == ("relu_1", "interpolate_1")
    assert layers_of(net.branches[0]) == ["auxiliary"]  # its output is a branch's own now


class Pieces(nn.Module):
    """What follows the stem is no tensor: pieces of one."""

    def __init__(self):
        super().__init__()
        self.stem, self.body, self.fc = nn.Conv2d(3, 8, 3), nn.Conv2d(4, 4, 3), nn.Conv2d(8, 5, 1)

    def forward(self, x):
        left, right = torch.relu(self.stem(x)).chunk(2, 1)
        return self.fc(torch.cat([left, F.pad(self.body(right), (1, 1, 1, 1))], 1))


def test_a_stem_ends_at_a_tensor():
    net = multiquantize(Pieces(), [2, 4], input_shape=SHAPE)
    assert net.plan.stem_ends == ("relu",)


def test_a_head_may_start_where_another_output_is_not_made_yet():
    """Sizes of the head are read of the image then, not of a tensor that comes later."""
    model = OrderedMapsOfTheImagesSize()
    net = multiquantize(model, [2, 4], input_shape=SHAPE, head="classifier")
    assert layers_of(net.head) == ["classifier"]
    images = torch.randn(2, 3, 24, 20)
    with torch.no_grad(), net.eval().floating(), net.at_bits(2):
        found, expected = net(images), model.eval()(images)
    assert all(torch.equal(found[key], expected[key]) for key in ("out", "aux"))


def test_hardware_takes_one_tensor():
    one = multiquantize(OneMap(), [2], input_shape=SHAPE, profile="finn")
    assert one(torch.randn(2, *SHAPE[1:])).shape == (2, 3, 16, 16)
    with pytest.raises(UnsupportedModelError, match="network that returns one tensor, got 2"):
        multiquantize(OrderedMaps(), [2], input_shape=SHAPE, profile="finn")


@pytest.mark.parametrize("options", [{"features_only": True}, {"num_classes": 0}])
def test_timm_models_without_their_classifier(options):
    model = timm.create_model("test_resnet", **options)
    net = multiquantize(model, [2, 4], input_shape=(1, 3, 64, 64))
    assert not layers_of(net.head)
    images = torch.randn(2, 3, 64, 64)
    _same_as_the_model(net.eval(), model.eval(), images)
