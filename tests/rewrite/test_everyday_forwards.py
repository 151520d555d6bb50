"""Forwards as people write them: sizes read early, defaults, loops over sizes, squeezes."""

import math
from types import MethodType

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from brevitas_multiquant import calibrate, extract_subnet, multiquantize
from brevitas_multiquant.errors import (
    InputSizeError,
    TraceError,
    UnsupportedModelError,
    UntracedWarning,
)
from brevitas_multiquant.export import export_qonnx
from tests.tiny import IMAGE, BranchingOnData


class Base(nn.Module):
    """Stem, body, pooling and classifier; subclasses write the forward."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.down = nn.Conv2d(4, 6, 3, padding=1, stride=2)
        self.body = nn.Conv2d(6, 6, 3, padding=1)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(6, 5)

    def features(self, x):
        return torch.relu(self.body(torch.relu(self.down(torch.relu(self.stem(x))))))


class SizeOfImage(Base):
    def forward(self, x):
        b = x.size(0)
        return self.fc(self.pool(self.features(x)).view(b, -1))


class UnpackedShape(Base):
    def forward(self, x):
        b, _c, _h, _w = x.shape
        return self.fc(self.pool(self.features(x)).reshape(b, -1))


class StarredShape(Base):
    def forward(self, x):
        b, *_rest = x.size()
        return self.fc(self.pool(self.features(x)).reshape(b, -1))


class OfStem(Base):
    def forward(self, x):
        x = torch.relu(self.stem(x))
        b = x.shape[0]
        x = torch.relu(self.body(torch.relu(self.down(x))))
        return self.fc(self.pool(x).reshape(b, -1))


class WholeShape(Base):
    """Channels are a constant of the network, the batch is not."""

    def forward(self, x):
        y = torch.relu(self.stem(x))
        z = self.features(x) if False else torch.relu(self.body(torch.relu(self.down(y))))
        z = self.pool(z)
        return self.fc(z.view(x.size(0), y.size(1) + 2))


class GroupsOfBatch(Base):
    """Twice the batch, read of the image."""

    def forward(self, x):
        twice = x.shape[0] * 2
        y = self.features(x).reshape(twice, 3, 4, 4)
        return self.fc(self.pool(y).reshape(x.shape[0], -1))


class DtypeAndDevice(Base):
    def forward(self, x):
        dtype, device = x.dtype, x.device
        x = self.pool(self.features(x)).flatten(1)
        return self.fc(x.to(dtype).to(device))


class SkipInStem(Base):
    """The image's height and width are the stem output's, whatever the image."""

    def forward(self, x):
        size = x.shape[2:]
        x = torch.relu(self.stem(x))
        x = F.interpolate(torch.relu(self.down(x)), size=size)
        return self.fc(self.pool(torch.relu(self.body(x))).flatten(1))


class Computed(Base):
    """Numbers computed from sizes of the stem's output, one of them no integer."""

    def forward(self, x):
        x = torch.relu(self.stem(x))
        b, c, h, w = x.shape
        scale = h / 2
        rows = x.permute(0, 2, 1, 3).reshape(b * h, c, w)
        x = (rows * scale).reshape(b, h, c, w).permute(0, 2, 1, 3)
        x = torch.relu(self.body(torch.relu(self.down(x))))
        return self.fc(self.pool(x).flatten(1))


SIZES = [
    Computed,
    SizeOfImage,
    UnpackedShape,
    StarredShape,
    OfStem,
    WholeShape,
    GroupsOfBatch,
    DtypeAndDevice,
    SkipInStem,
]


def equals_the_model(net, model, images):
    """Whether one branch with quantizers off gives the model's logits to the bit."""
    model.eval()
    with torch.no_grad(), net.eval().floating(), net.at_bits(2):
        return torch.equal(net(images), model(images))


@pytest.mark.parametrize("kind", SIZES)
def test_sizes_read_in_another_part(make_net, images, kind, tmp_path):
    """At every batch size, one included, as a network, a subnet and a file."""
    model = kind()
    net = make_net(model)
    for batch in (1, 2, 4):
        assert equals_the_model(net, model, images[:batch])
    calibrate(net, [images])
    with torch.no_grad(), net.at_bits(4):
        assert torch.equal(extract_subnet(net, 4)(images[:3]), net.eval()(images[:3]))
    assert net.plan.opaque == net.plan.notes == []
    if kind is not SkipInStem:  # tests/export has resizes
        export_qonnx(net, tmp_path, bits=[2])


class HalfOfImage(Base):
    """Computed from the image's size, which is the stem output's."""

    def forward(self, x):
        h, w = x.shape[2] // 2, x.shape[3] // 2
        x = torch.relu(self.down(torch.relu(self.stem(x))))
        return self.fc(self.pool(F.interpolate(self.body(x), size=(h, w))).flatten(1))


@pytest.mark.parametrize("kind", [SkipInStem, HalfOfImage])
def test_sizes_found_again_hold_for_other_images(make_net, kind):
    model = kind()
    net = make_net(model)
    assert net.plan.notes == []
    for size in ((8, 8), (16, 24), (9, 15)):
        assert equals_the_model(net, model, torch.randn(2, 3, *size))


class SizeOfImageAlone(Base):
    """No size of the body's input equals the image's."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1, stride=2)

    def forward(self, x):
        size = x.shape[-2:]
        x = torch.relu(self.down(torch.relu(self.stem(x))))
        return self.fc(self.pool(F.interpolate(self.body(x), size=size)).flatten(1))


def test_a_size_of_the_image_alone_comes_with_the_image(make_net):
    model = SizeOfImageAlone()
    net = make_net(model)
    assert net.plan.notes == [] and "x" in net.plan.stem_ends
    for size in ((8, 8), (16, 24), (9, 15)):
        assert equals_the_model(net, model, torch.randn(2, 3, *size))


def test_a_size_of_the_image_alone_is_guarded_for_hardware(make_net, images):
    """It holds for the size that the network was converted for; another is refused by name."""
    net = make_net(SizeOfImageAlone(), profile="finn")
    assert any("holds for images of the size of input_shape" in note for note in net.plan.notes)
    calibrate(net, [images])
    for part in (net, extract_subnet(net, 4)):
        with pytest.raises(InputSizeError, match=r"are \(4, 4\), got features of \(8, 8\)"):
            part(torch.randn(2, 3, 16, 16))


def test_a_size_that_cannot_be_guarded_is_refused(make_net):
    """Behind the pooling nothing tells the size of the image any more."""

    class ScaledLogits(Base):
        def forward(self, x):
            h = x.shape[2]
            y = self.pool(self.features(x)).flatten(1)
            return self.fc(torch.relu(y)) * h

    model = ScaledLogits()
    assert equals_the_model(make_net(model), model, torch.randn(2, 3, 16, 24))  # the image tells
    with pytest.raises(
        UnsupportedModelError,
        match=r"getitem \(8\) is read from the size of one part's .* read it from the tensor that",
    ):
        make_net(model, profile="finn")


class Flag(Base):
    def forward(self, x, return_features=False):
        f = self.features(x).mean((2, 3))
        return (self.fc(f), f) if return_features else self.fc(f)


class Target(Base):
    def forward(self, x, target=None):
        y = self.fc(self.features(x).mean((2, 3)))
        return y if target is None else F.cross_entropy(y, target)


class Number(Base):
    def forward(self, x, alpha=0.5):
        return self.fc(self.features(x).mean((2, 3)) * alpha)


class Mode(Base):
    def forward(self, x, mode="logits"):
        f = self.features(x).mean((2, 3))
        return self.fc(f) if mode == "logits" else f


class KeywordOnly(Base):
    def forward(self, x, *, dims=(2, 3)):
        return self.fc(self.features(x).mean(dims))


class Anything(Base):
    def forward(self, x, *args, **kwargs):
        return self.fc(self.features(x, *args, **kwargs).mean((2, 3)))


class TensorDefault(Base):
    def forward(self, x, shift=torch.full((1, 6), 0.25)):  # noqa: B008
        return self.fc(self.features(x).mean((2, 3)) + shift)


@pytest.mark.parametrize("kind", [Flag, Target, Number, Mode, KeywordOnly, Anything, TensorDefault])
def test_arguments_have_their_defaults(images, kind, tmp_path):
    """Traced as a whole: odd bit-widths, shared quantizers, files."""
    model = kind()
    net = multiquantize(model, [2, 3], input_shape=IMAGE)
    assert equals_the_model(net, model, images)
    assert net.plan.opaque == []
    assert len(net.plan.sites) == 2
    calibrate(net, [images])
    export_qonnx(net, tmp_path, bits=[2])


def test_a_forward_that_needs_more_than_images(make_net):
    class Pair(Base):
        def forward(self, x, other):
            return self.fc(self.features(x + other).mean((2, 3)))

    with pytest.raises(TraceError, match=r"Pair\.forward: .* got x, other; give the others def"):
        make_net(Pair())


def test_a_forward_of_one_object(make_net, images):
    """Set on the model, not on its class."""
    model = Flag()
    model.forward = MethodType(lambda self, x: self.fc(self.features(x).amax((2, 3))), model)
    net = make_net(model)
    assert net.plan.opaque == []
    assert equals_the_model(net, model, images)


class SqueezeAll(Base):
    def forward(self, x):
        return self.fc(self.pool(self.features(x)).squeeze())


class SqueezeFunction(Base):
    def forward(self, x):
        return self.fc(torch.squeeze(self.pool(self.features(x))))


class SqueezeAndUnsqueeze(Base):
    """The usual repair for a batch of one."""

    def forward(self, x):
        y = self.pool(self.features(x)).squeeze()
        if y.dim() == 1:
            y = y.unsqueeze(0)
        return self.fc(y)


@pytest.mark.parametrize("kind", [SqueezeAll, SqueezeFunction, SqueezeAndUnsqueeze])
def test_squeeze_without_a_dimension_leaves_the_batch(make_net, images, kind, tmp_path):
    model = kind()
    net = make_net(model)
    assert equals_the_model(net, model, images)
    calibrate(net, [images])
    with torch.no_grad():
        one, four = net.eval()(images[:1]), net(images)
    assert one.shape == (1, 5)
    assert torch.equal(one[0].argmax(), four[0].argmax())
    export_qonnx(net, tmp_path, bits=[2])


class LoopOverHeight(Base):
    """As many steps as the map is high."""

    def forward(self, x):
        x = self.features(x)
        total = 0
        for row in range(x.shape[2]):
            total = total + x[:, :, row]
        return self.fc(total.mean(2))


class LoopOverChunks(Base):
    def forward(self, x):
        pieces = [piece * 2 for piece in self.features(x).chunk(3, dim=1)]
        return self.fc(torch.cat(pieces, 1).mean((2, 3)))


class LoopOverShape(Base):
    def forward(self, x):
        x = self.features(x)
        sizes = [size for size in x.shape]  # noqa: C416
        return self.fc(x.reshape(sizes[0], sizes[1], -1).mean(2))


class Halving(Base):
    def forward(self, x):
        x = self.features(x)
        while x.shape[2] > 1:
            x = F.max_pool2d(x, 2)
        return self.fc(x.flatten(1))


class SquareRoot(Base):
    def forward(self, x):
        x = self.features(x)
        side = int(math.sqrt(x.shape[2] * x.shape[3]))
        return self.fc(F.avg_pool2d(x, side).flatten(1))


class Rounded(Base):
    def forward(self, x):
        x = self.features(x)
        return self.fc(F.adaptive_avg_pool2d(x, round(x.shape[2] / 2)).mean((2, 3)))


class NumberOfDimensions(Base):
    def forward(self, x):
        assert len(x.shape) == 4
        assert x.ndim == 4
        assert x.shape[1] == 3, f"three channels, got {x.shape[1]}"
        return self.fc(self.features(x).mean(tuple(range(2, x.dim()))))


class Largest(Base):
    def forward(self, x):
        x = self.features(x)
        return self.fc(F.max_pool2d(x, max(x.shape[2], x.shape[3])).flatten(1))


class Grid(Base):
    """A tensor made of sizes."""

    def forward(self, x):
        x = self.features(x)
        ramp = torch.arange(x.shape[3], dtype=x.dtype) / x.shape[3]
        return self.fc((x * ramp).mean((2, 3)))


class NumberOfFeatures(Base):
    """As in the first tutorial that many people read."""

    def forward(self, x):
        x = self.pool(self.features(x))
        number = 1
        for size in x.size()[1:]:
            number *= size
        return self.fc(x.view(-1, number))


class Remainder(Base):
    def forward(self, x):
        x = self.features(x)
        whole, rest = divmod(x.shape[2], 3)
        assert f"{x.shape[2]:d} {whole} {rest}".startswith("4 ")
        return self.fc(x[:, :, whole:].mean((2, 3)))


@pytest.mark.parametrize(
    "kind",
    [
        *(
            NumberOfFeatures,
            Remainder,
            LoopOverHeight,
            LoopOverChunks,
            LoopOverShape,
            Halving,
            SquareRoot,
            Rounded,
        ),
        *(NumberOfDimensions, Largest, Grid),
    ],
)
def test_shapes_decide(make_net, images, kind):
    """Loops, conversions and conditions on sizes are no control flow on data."""
    model = kind()
    net = make_net(model)
    assert net.plan.opaque == []
    assert len(net.plan.sites) == 2
    for batch in (1, 4):
        assert equals_the_model(net, model, images[:batch])


@pytest.mark.parametrize("kind", [LoopOverHeight, SquareRoot, Rounded])
def test_numbers_taken_from_the_size_hold_for_it_alone(make_net, images, kind):
    """Python's numbers are constants of the trace: images of another size are refused by name."""
    net = make_net(kind())
    (note,) = [note for note in net.plan.notes if "size of the image" in note]
    assert "at test_everyday_forwards.py:" in note and "x.shape[" in note
    assert "it holds for images of (8, 8)" in note
    calibrate(net, [images])
    with pytest.raises(InputSizeError, match=r"expected images of \(8, 8\), got \(16, 16\)"):
        net(torch.randn(2, 3, 16, 16))


@pytest.mark.parametrize("kind", [LoopOverChunks, LoopOverShape, NumberOfFeatures, Largest, Grid])
def test_what_no_size_changes_is_free(make_net, kind):
    """Channels and numbers of dimensions are decided for every image; sizes may stay nodes."""
    model = kind()
    net = make_net(model)
    assert net.plan.notes == []
    assert equals_the_model(net, model, torch.randn(2, 3, 16, 16))


def test_a_condition_on_the_batch_size_is_told(make_net):
    class Odd(nn.Module):
        def forward(self, x):
            return x * 2 if x.shape[0] % 2 else x

    class Net(Base):
        def __init__(self):
            super().__init__()
            self.odd = Odd()

        def forward(self, x):
            return self.fc(self.odd(self.features(x)).mean((2, 3)))

    with pytest.warns(UntracedWarning, match=r"odd cannot be traced .*depends on the batch size"):
        net = make_net(Net())
    assert net.plan.opaque == ["odd"]


def test_a_loop_over_images_is_told(make_net):
    """A trace would freeze the batch size; the plan says where, and what to write instead."""

    class Each(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(6, 6, 1)

        def forward(self, x):
            return torch.cat([self.conv(x[i : i + 1]) for i in range(len(x))])

    class Net(Base):
        def __init__(self):
            super().__init__()
            self.each = Each()

        def forward(self, x):
            return self.fc(self.each(self.features(x)).mean((2, 3)))

    with pytest.warns(UntracedWarning, match=r"each cannot be traced .*batch size.*x\.shape\[0\]"):
        net = make_net(Net())
    assert net.plan.opaque == ["each"]


def test_what_is_not_traced_is_told_at_once(make_net, images):
    """With the line of the author's code, and what it costs."""
    with pytest.warns(UntracedWarning) as caught:
        net = make_net(BranchingOnData())
    (message,) = [str(warning.message) for warning in caught]
    assert message.startswith("BranchingOnData: body cannot be traced (TraceError: symbolically")
    assert "at tiny.py:" in message and "if x.sum() > 0:" in message
    assert "a quantizer of its own; odd bit-widths and exports are refused" in message
    assert message.removeprefix("BranchingOnData: ") in str(net.plan)


def test_memory_that_runs_out_is_no_control_flow(make_net):
    class Hungry(Base):
        def forward(self, x):
            raise MemoryError("no room")

    with pytest.raises(MemoryError, match="no room"):
        make_net(Hungry())
