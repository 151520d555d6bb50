"""Code layers: folded scale in training, exact integers in evaluation, timm's own convolutions."""

import pytest
import torch
import torch.nn.functional as F
from timm.layers import Conv2dSame, ScaledStdConv2d, ScaledStdConv2dSame, StdConv2d, StdConv2dSame
from torch import nn

from brevitas_multiquant.core.clip_quantize import quantize_activation
from brevitas_multiquant.core.panel import Panel
from brevitas_multiquant.quant import layers
from brevitas_multiquant.quant.layers import (
    CodeConv1d,
    CodeConv2d,
    CodeLinear,
    can_quantize,
    code_layer,
    register_layer,
    weight_range,
)
from brevitas_multiquant.quant.member import frozen_copy
from brevitas_multiquant.quant.ranges import weight_bounds
from tests import reference

BITS = [2, 4, 6, 8]
LAYERS = {
    "conv": lambda: nn.Conv2d(4, 6, 3, padding=1),
    "strided": lambda: nn.Conv2d(4, 6, 3, stride=2, padding=1, bias=False),
    "depthwise": lambda: nn.Conv2d(4, 4, 3, padding=1, groups=4, bias=False),
    "grouped": lambda: nn.Conv2d(4, 6, 3, groups=2, dilation=2),
    "reflect": lambda: nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect"),
    "conv1d": lambda: nn.Conv1d(4, 6, 3, padding=1),
    "linear": lambda: nn.Linear(9, 5),
    "same": lambda: Conv2dSame(4, 6, 3, stride=2),
    "standardised": lambda: StdConv2d(4, 6, 3, padding=1),
    "standardised_same": lambda: StdConv2dSame(4, 6, 3, stride=2),
    "scaled": lambda: ScaledStdConv2d(4, 6, 3, padding=1, gamma=1.7),
    "scaled_same": lambda: ScaledStdConv2dSame(4, 6, 3, stride=2, gamma=1.7),
}


def input_for(layer):
    if isinstance(layer, nn.Linear):
        return torch.randn(3, 9)
    return torch.randn(3, 4, 9) if isinstance(layer, nn.Conv1d) else torch.randn(3, 4, 9, 9)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("kind", LAYERS)
def test_without_quantizers_it_is_the_float_layer(kind, training):
    layer = LAYERS[kind]().train(training)
    active = Panel(4)
    quantized = code_layer(layer, active)
    x = input_for(layer)
    with active.floating():
        assert torch.equal(quantized(x), layer(x))


@pytest.mark.parametrize("kind", LAYERS)
def test_the_float_layer_is_copied_not_shared(kind):
    layer = LAYERS[kind]()
    state = {name: value.clone() for name, value in layer.state_dict().items()}
    random_state = torch.random.get_rng_state()
    quantized = code_layer(layer, Panel(4))
    assert torch.equal(torch.random.get_rng_state(), random_state)
    with torch.no_grad():
        for parameter in quantized.parameters():
            parameter.add_(1.0)
    assert all(torch.equal(layer.state_dict()[name], state[name]) for name in state)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("kind", LAYERS)
def test_training_against_the_value_domain(kind, bits):
    """The folded scale against the paper's values through the float layer's own operation."""
    layer = LAYERS[kind]()
    active = Panel(bits)
    quantized = code_layer(layer, active).train()
    learned = weight_range(quantized)
    x = input_for(layer)
    bounds = [torch.tensor(-1.0), torch.tensor(1.5)]
    output = quantized(quantize_activation(x, *bounds, bits))
    output.square().mean().backward()

    oracle = LAYERS[kind]().double()
    oracle.load_state_dict(layer.state_dict())
    weight = quantized.effective_weight().detach().double().requires_grad_()
    lower, upper = (b.detach().double().requires_grad_() for b in (learned.lower, learned.upper))
    values = reference.activation_values(x.double(), *(b.double() for b in bounds), bits)
    weight_values = reference.weight_values(weight, lower, upper)
    expected = _operation(oracle, values, weight_values)
    expected.square().mean().backward()

    # at most 36 products a sum, in fp32: 36 * 2**-24 = 2e-6 of the largest, with room for scale
    torch.testing.assert_close(output.double(), expected, rtol=1e-5, atol=1e-5)
    for ours, theirs in [(learned.lower, lower), (learned.upper, upper)]:
        torch.testing.assert_close(ours.grad.double(), theirs.grad, rtol=1e-4, atol=1e-4)
    if quantized.weight_function is None:
        torch.testing.assert_close(
            quantized.weight.grad.double(), weight.grad, rtol=1e-4, atol=1e-5
        )
    assert quantized.weight.grad.abs().sum() > 0


def _operation(layer, values, weight):
    if isinstance(layer, nn.Linear):
        return F.linear(values, weight, layer.bias)
    if isinstance(layer, (Conv2dSame, StdConv2dSame, ScaledStdConv2dSame)):
        # 9 pixels, stride 2: 5 windows of 3 need 11 pixels, so one on each side
        values, padding = F.pad(values, (1, 1, 1, 1)), 0
    else:
        padding = layer.padding
    if layer.padding_mode == "reflect":
        values, padding = F.pad(values, (1, 1, 1, 1), mode="reflect"), 0
    conv = F.conv1d if isinstance(layer, nn.Conv1d) else F.conv2d
    return conv(values, weight, layer.bias, layer.stride, padding, layer.dilation, layer.groups)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("kind", ["conv", "strided", "depthwise"])
def test_evaluation_is_exact_integer_arithmetic(kind, bits):
    """Codes times codes against int64; then one scale, then the bias: two roundings, no more."""
    layer = LAYERS[kind]().eval()
    quantized = code_layer(layer, Panel(bits))
    codes = torch.randint(0, 2**bits, (2, 4, 9, 9)).float()
    sums = reference.conv2d_integers(
        codes, quantized.quant_weight(), layer.stride[0], layer.padding[0], layer.groups
    )
    assert sums.abs().max() < 2**24  # fp32 holds every such integer
    scale = torch.tensor(1.0 / (3 * (2**bits - 1)))
    expected = sums.float() * scale
    if layer.bias is not None:
        expected = expected + layer.bias.detach().view(-1, 1, 1)
    with torch.no_grad():
        assert torch.equal(quantized(codes), expected)


@pytest.mark.parametrize("bits", BITS)
def test_evaluation_of_linear_is_exact(bits):
    linear = nn.Linear(64, 5).eval()
    quantized = code_layer(linear, Panel(bits))
    codes = torch.randint(0, 2**bits, (7, 64))
    sums = codes @ quantized.quant_weight().detach().to(torch.int64).T
    with torch.no_grad():
        expected = sums.float() * torch.tensor(1.0 / (3 * (2**bits - 1))) + linear.bias
        assert torch.equal(quantized(codes.float()), expected)


def test_evaluation_does_not_depend_on_the_order_of_summation():
    """The reason for the code domain: any executor gets the same bits."""
    conv = nn.Conv2d(64, 8, 3, padding=1, bias=False).eval()
    quantized = code_layer(conv, Panel(8))
    codes = torch.randint(0, 256, (2, 64, 9, 9)).float()
    order = torch.randperm(64)
    with torch.no_grad():
        forward = quantized(codes)
        quantized.weight.copy_(quantized.weight[:, order])
        assert torch.equal(quantized(codes[:, order]), forward)


@pytest.mark.parametrize("bits", BITS)
def test_training_and_evaluation_agree(bits):
    quantized = code_layer(nn.Conv2d(4, 6, 3), Panel(bits))
    codes = torch.randint(0, 2**bits, (2, 4, 9, 9)).float()
    # 36 terms of size at most 1, in another association: 36 * 2**-24 = 2e-6
    torch.testing.assert_close(quantized.train()(codes), quantized.eval()(codes), rtol=0, atol=4e-6)


@pytest.mark.parametrize("kind", LAYERS)
def test_range_starts_from_the_effective_weight(kind):
    quantized = code_layer(LAYERS[kind](), Panel(4))
    learned = weight_range(quantized)
    lower, upper = weight_bounds(quantized.effective_weight())
    assert (learned.lower.item(), learned.upper.item()) == (lower.item(), upper.item())
    assert learned.ready


def test_types():
    expected = {"conv": CodeConv2d, "conv1d": CodeConv1d, "linear": CodeLinear, "same": CodeConv2d}
    for kind, layer_type in expected.items():
        assert type(code_layer(LAYERS[kind](), Panel(2))) is layer_type


def test_a_subclass_is_not_taken_for_its_base():
    class ScaledConv(nn.Conv2d):
        def forward(self, x):
            return 2 * super().forward(x)

    assert can_quantize(nn.Conv2d(1, 1, 1))
    assert not can_quantize(ScaledConv(1, 1, 1))


@pytest.mark.usefixtures("own_rules")
def test_a_rule_can_be_registered():
    class PlainConv(nn.Conv2d):
        pass

    register_layer("PlainConv")(layers._conv2d)
    conv = PlainConv(3, 4, 3)
    assert can_quantize(conv)
    quantized = code_layer(conv, Panel(2))
    assert torch.equal(quantized.weight, conv.weight)


def test_device_training_mode_and_frozen_parameters_are_kept():
    conv = nn.Conv2d(3, 4, 3).eval()
    conv.weight.requires_grad_(False)
    quantized = code_layer(conv, Panel(2))
    assert not quantized.training
    assert not quantized.weight.requires_grad and quantized.bias.requires_grad


@pytest.mark.parametrize("kind", [StdConv2d, ScaledStdConv2d, StdConv2dSame, ScaledStdConv2dSame])
@pytest.mark.parametrize("stride", [1, 2])
def test_a_standardised_weight_as_a_constant(kind, stride):
    """For the float stem of a file: exporters cannot write the standardisation."""
    layer = kind(4, 6, 3, stride=stride)
    plain = frozen_copy(layer, 2)
    x = torch.randn(2, 4, 9, 9)
    assert torch.equal(plain(x), layer(x))
    assert not torch.equal(plain.weight, layer.weight)
    assert type(plain) in (nn.Conv2d, Conv2dSame)
    assert type(frozen_copy(plain, 2)) is type(plain)
