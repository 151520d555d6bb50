"""Which rule a layer has: by what its class is and overrides, never by its name alone."""

import pytest
import torch
import torch.nn.functional as F
from timm.layers import StdConv2d
from torch import nn

from brevitas_multiquant import multiquantize
from brevitas_multiquant.core.panel import Panel
from brevitas_multiquant.errors import UnsupportedModelError
from brevitas_multiquant.profiles.finn.quantizers import fixed_point_layer
from brevitas_multiquant.quant import layers
from brevitas_multiquant.quant.layers import (
    CodeConv2d,
    can_quantize,
    code_layer,
    is_plain,
    register_layer,
)


class StdConv2d_(nn.Conv2d):  # noqa: N801
    """Called as timm's own."""

    def forward(self, x):
        return super().forward(x)


StdConv2d_.__name__ = StdConv2d_.__qualname__ = "StdConv2d"


class OwnWeight(nn.Linear):
    """Of its parameter twice; so what ``nn.Linear`` draws never gets into the parameter."""

    def __init__(self, *sizes):
        super().__init__(*sizes)
        nn.init.normal_(self._parameters["weight"])

    @property
    def weight(self):
        if "weight" not in self._parameters:
            raise AttributeError("weight")
        return self._parameters["weight"] * 2


class OwnConvolution(nn.Conv2d):
    def _conv_forward(self, x, weight, bias):
        return super()._conv_forward(x.relu(), weight, bias)


class PlainConv(nn.Conv2d):
    """Overrides what does not matter."""

    def extra_repr(self):
        return "plain"


class TimmsWithMore(StdConv2d):
    pass


class TimmsChanged(StdConv2d):
    def forward(self, x):
        return super().forward(x) * 2


@pytest.mark.parametrize("kind", [StdConv2d_, OwnConvolution, TimmsChanged])
def test_a_class_is_known_by_what_it_is_not_by_its_name(kind):
    assert not can_quantize(kind(3, 4, 3))


def test_a_weight_or_a_forward_of_its_own_needs_a_rule():
    assert not can_quantize(OwnWeight(3, 4))
    patched = nn.Conv2d(3, 4, 3)
    patched.forward = lambda x: nn.Conv2d.forward(patched, x) * 2
    assert not can_quantize(patched) and can_quantize(nn.Conv2d(3, 4, 3))


def test_a_subclass_that_computes_as_its_base_has_its_rule():
    conv = PlainConv(3, 4, 3)
    assert is_plain(conv, nn.Conv2d) and type(code_layer(conv, Panel(2))) is CodeConv2d
    standardised = TimmsWithMore(3, 4, 3, padding=0)
    quantized = code_layer(standardised, Panel(2))
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(F.conv2d(x, quantized.effective_weight(), quantized.bias), standardised(x))


@pytest.mark.usefixtures("own_rules")
@pytest.mark.parametrize("kind", [OwnConvolution, f"{__name__}.OwnConvolution", "OwnConvolution"])
def test_a_rule_for_a_type_its_place_or_its_name(kind):
    assert not can_quantize(OwnConvolution(3, 4, 3))
    register_layer(kind)(layers._conv2d)
    assert can_quantize(OwnConvolution(3, 4, 3)) and not can_quantize(OwnWeight(3, 4))


def test_an_8_bit_layer_is_made_of_what_computes_as_a_plain_one():
    class Scaled(nn.Linear):
        def forward(self, x):
            return super().forward(x) * 2

    assert fixed_point_layer(Scaled(3, 4), Panel(2)) is None
    assert fixed_point_layer(PlainConv(3, 4, 3), Panel(2)) is not None


@pytest.mark.parametrize("check", [True, False])
def test_a_layer_with_a_forward_of_its_own_is_refused_in_a_branch_alone(check):
    """In stem and head it runs as its author wrote it."""

    def build(first, second, last):
        parts = (first(3, 4, 3), nn.ReLU(), second(4, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1))
        return nn.Sequential(*parts, nn.Flatten(), last(4, 5))

    shape = (1, 3, 8, 8)
    with pytest.raises(UnsupportedModelError, match=r"StdConv2d \(2\) is .* without a rule.*own"):
        multiquantize(build(nn.Conv2d, StdConv2d_, nn.Linear), [2], input_shape=shape, check=check)
    model = build(StdConv2d_, PlainConv, OwnWeight).eval()
    net = multiquantize(model, [2], input_shape=shape, check=check)
    images = torch.randn(2, 3, 8, 8)
    with torch.no_grad(), net.floating():
        assert torch.equal(net(images), model(images))
