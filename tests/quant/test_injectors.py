"""The injectors in stock Brevitas layers, as someone who knows only Brevitas would use them."""

import pytest
import torch
from brevitas.nn import QuantConv2d, QuantIdentity, QuantLinear

from brevitas_multiquant.core.clip_quantize import quantize_activation, quantize_weight
from brevitas_multiquant.core.grids import WEIGHT_FORMATS
from brevitas_multiquant.quant import (
    Int2WeightPerTensorLearnedRange,
    OddInt3WeightPerTensorLearnedRange,
    TernaryWeightPerTensorLearnedRange,
    UintActPerTensorLearnedRange,
)
from brevitas_multiquant.quant.ranges import activation_bounds, weight_bounds


@pytest.mark.parametrize(
    ("injector", "name", "bits"),
    [
        (OddInt3WeightPerTensorLearnedRange, "odd", 3),
        (Int2WeightPerTensorLearnedRange, "int2", 2),
        (TernaryWeightPerTensorLearnedRange, "ternary", 2),
    ],
)
def test_weights_in_stock_conv(injector, name, bits):
    weight_format = WEIGHT_FORMATS[name]
    conv = QuantConv2d(3, 8, 3, bias=False, weight_quant=injector)
    torch.nn.init.normal_(conv.weight)  # uniform weights end below 2 std, where code 3 begins
    quantized = conv.quant_weight()
    bounds = weight_bounds(conv.weight, weight_format)
    assert torch.equal(quantized.value, quantize_weight(conv.weight, *bounds, weight_format))
    assert tuple(quantized.value.unique().tolist()) == weight_format.integers
    assert (quantized.scale.item(), quantized.zero_point.item()) == (1.0, 0.0)
    assert (quantized.bit_width.item(), quantized.signed) == (bits, True)
    assert conv.weight_quant.is_narrow_range == weight_format.is_narrow
    x = torch.randn(2, 3, 6, 6)
    assert torch.equal(conv(x), torch.nn.functional.conv2d(x, quantized.value))


def test_weights_in_stock_linear():
    linear = QuantLinear(6, 4, bias=True, weight_quant=OddInt3WeightPerTensorLearnedRange)
    x = torch.randn(2, 6)
    expected = torch.nn.functional.linear(x, linear.quant_weight().value, linear.bias)
    assert torch.equal(linear(x), expected)


@pytest.mark.parametrize("bits", [2, 4, 6, 8])
def test_activations_in_stock_identity(bits):
    quantizer = QuantIdentity(
        act_quant=UintActPerTensorLearnedRange, bit_width=bits, return_quant_tensor=True
    )
    x = torch.randn(1000).relu()
    quantized = quantizer(x)
    assert torch.equal(quantized.value, quantize_activation(x, *activation_bounds(x), bits))
    assert (quantized.scale.item(), quantized.zero_point.item()) == (1.0, 0.0)
    assert (quantized.bit_width.item(), quantized.signed) == (bits, False)
    assert quantized.value.max().item() == 2**bits - 1


def test_every_parameter_trains():
    conv = QuantConv2d(
        3,
        4,
        3,
        weight_quant=OddInt3WeightPerTensorLearnedRange,
        input_quant=UintActPerTensorLearnedRange,
        input_bit_width=4,
    )
    conv(torch.randn(2, 3, 6, 6)).square().sum().backward()
    parameters = dict(conv.named_parameters())
    assert len(parameters) == 2 + 4  # weight and bias; l and u of weights and of activations
    for name, parameter in parameters.items():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


def test_state_of_stock_layers_survives_a_reload():
    make = lambda: QuantIdentity(act_quant=UintActPerTensorLearnedRange, bit_width=4)  # noqa: E731
    trained, resumed = make(), make()
    trained(torch.randn(100))
    resumed.load_state_dict(trained.state_dict())
    x = 50 * torch.randn(100)
    assert torch.equal(resumed(x), trained(x))
