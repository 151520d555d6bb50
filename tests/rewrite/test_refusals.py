"""What cannot be rewritten is refused by name, with every reason, and left as it was."""

import pytest
import timm
import torch
from brevitas.nn import QuantConv2d
from timm.layers import CondConv2d
from torch import nn

from brevitas_multiquant import multiquantize
from brevitas_multiquant.errors import BitWidthError, TraceError, UnsupportedModelError
from tests.tiny import IMAGE, TinyNet


def convs(*middle):
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1),
        nn.ReLU(),
        *middle,
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 5),
    )


class OwnConv(nn.Conv2d):
    """A subclass that the package has no rule for."""

    def forward(self, x):
        return super().forward(x)


class Squared(nn.Module):
    """A kind of layer that nothing is known of."""

    def __init__(self):
        super().__init__()
        self.form = nn.Bilinear(4, 4, 4)

    def forward(self, x):
        x = x.movedim(1, -1)
        return self.form(x, x).movedim(-1, 1)


class NoTensor(TinyNet):
    def forward(self, x):
        return {"size": super().forward(x).shape[1]}


class Unseen(nn.Module):
    """A list of maps, made by a module that counts the images of a batch."""

    class Maps(nn.Module):
        def forward(self, x):
            return [x.view(len(x), -1), x]

    def __init__(self):
        super().__init__()
        self.convs, self.maps = convs(nn.Conv2d(4, 4, 1)), self.Maps()

    def forward(self, x):
        return self.maps(self.convs[2](self.convs[0](x)))


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.rnn = nn.GRU(8, 4, batch_first=True)
        self.fc = nn.Linear(4, 5)

    def forward(self, x):
        x = self.conv(x).flatten(1, 2)
        return self.fc(self.rnn(x)[0].mean(1))


class Routed(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.routing = nn.Linear(4, 2)
        self.cond = CondConv2d(4, 4, 3, num_experts=2)
        self.fc = nn.Linear(4, 5)

    def forward(self, x):
        x = self.conv(x)
        x = self.cond(x, torch.sigmoid(self.routing(x.mean((2, 3)))))
        return self.fc(x.mean((2, 3)))


class NoClassifier(nn.Module):
    """Two parallel layers, first and last at once."""

    def __init__(self):
        super().__init__()
        self.left = nn.Conv2d(3, 5, 3)
        self.right = nn.Conv2d(3, 5, 3)

    def forward(self, x):
        return (self.left(x) + self.right(x)).mean((2, 3))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            lambda: timm.create_model("vit_tiny_patch16_224", num_classes=5, img_size=32),
            r"VisionTransformer cannot become .*attention",
        ),
        (lambda: nn.Sequential(nn.Flatten(), nn.Linear(192, 5)), r"at least one convolution"),
        (
            NoClassifier,
            r"expected at least one layer between the stem \(ends at x\) and the head",
        ),
        (lambda: nn.Sequential(nn.Conv2d(3, 5, 8), nn.Flatten()), r"found none"),
        (lambda: convs(), r"expected at least one layer between the stem .* found none"),
        (lambda: convs(OwnConv(4, 4, 3)), r"OwnConv \(2\) is a kind of layer without a rule"),
        (lambda: convs(QuantConv2d(4, 4, 3)), r"2 is a Brevitas layer already"),
        (lambda: multiquantize(TinyNet(), [2], input_shape=IMAGE), r"a multi-branch network alr"),
        (lambda: "resnet18", r"expected a torch.nn.Module, got str"),
        (
            lambda: convs(nn.Conv2d(4, 4, 1), Squared()),
            r"3.form \(Bilinear\) holds a Bilinear that would stay float",
        ),
        (NoTensor, r"expected a forward that returns tensors, .* a number or a sequence at size"),
        (Unseen, r"a sequence at output, which maps gives; .* write x.shape\[0\] for len\(x\)"),
        (lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 5, 3)), r"at least one layer"),
        (Recurrent, r"rnn is a GRU; attention and recurrence"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_unsupported(model, message):
    model = model()
    shape = (1, 3, 32, 32) if type(model).__name__ == "VisionTransformer" else IMAGE
    with pytest.raises(UnsupportedModelError, match=f"(?s){message}"):
        multiquantize(model, [2, 4], input_shape=shape)


def test_input_dependent_weights():
    with pytest.raises(UnsupportedModelError, match=r"CondConv2d: its weights depend on the input"):
        multiquantize(Routed(), [2], input_shape=IMAGE)


def test_every_reason_is_listed():
    model = convs(OwnConv(4, 4, 3))
    with pytest.raises(UnsupportedModelError) as caught:
        multiquantize(model, [2], input_shape=IMAGE, stem="nowhere", head="neither")
    assert len(caught.value.reasons) == 2
    assert all(reason in str(caught.value) for reason in caught.value.reasons)


@pytest.mark.parametrize("option", ["stem", "head"])
@pytest.mark.parametrize("name", ["layer9", "con", ""])
def test_cut_at_something_that_is_no_module(tiny, option, name):
    with pytest.raises(
        UnsupportedModelError, match=rf"{option}='{name}': expected the name of a mo"
    ):
        multiquantize(tiny, [2], input_shape=IMAGE, **{option: name})


def test_a_stem_that_ends_after_the_head(tiny):
    with pytest.raises(UnsupportedModelError, match=r"stem='fc': .* after act_2, got one in it"):
        multiquantize(tiny, [2], input_shape=IMAGE, stem="fc")


def test_wrong_input_shape(tiny):
    with pytest.raises(
        TraceError, match=r"does not run on images of shape \(1, 4, 8, 8\): .*pass input_shape="
    ):
        multiquantize(tiny, [2], input_shape=(1, 4, 8, 8))


@pytest.mark.parametrize("bits", [[], [1], [2, 2], [18]])
def test_bad_bits_come_first(tiny, bits):
    with pytest.raises(BitWidthError, match="bits: expected"):
        multiquantize(tiny, bits, input_shape=IMAGE)


def test_a_refused_model_is_left_as_it_was():
    model = convs(OwnConv(4, 4, 3), nn.ReLU(inplace=True)).train()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    parts = [id(part) for part in (*model.modules(), *model.parameters())]
    with pytest.raises(UnsupportedModelError):
        multiquantize(model, [2], input_shape=IMAGE)
    assert [id(part) for part in (*model.modules(), *model.parameters())] == parts
    assert model.training and model[3].inplace
    assert all(torch.equal(model.state_dict()[name], value) for name, value in state.items())
