"""A random share of the weights quantized, against a forward with the mask written out."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from brevitas_multiquant import InPlaceDistillation, calibrate, multiquantize
from brevitas_multiquant.errors import ConfigError
from brevitas_multiquant.quant.layers import CodeLayer, weight_range
from brevitas_multiquant.training.quant_noise import set_quant_noise
from tests.tiny import IMAGE, TinyNet

METHODS: dict[str, dict[str, Any]] = {
    "multiquant": {"bits": [2, 3, 4]},
    "modified": {"bits": [2, 4], "method": "adabits", "grid": "modified"},
    "double_rounding": {"bits": [2, 4], "method": "double_rounding"},
    "any_precision": {"bits": [2, 4], "method": "any_precision"},
}
every_method = pytest.mark.parametrize("method", METHODS)


def made(method: str, images: Tensor) -> Any:
    torch.manual_seed(0)
    net = multiquantize(TinyNet(), input_shape=IMAGE, **METHODS[method])
    calibrate(net, [images])
    return net.train()


@every_method
def test_a_share_is_rounded_and_the_rest_is_not(images: Tensor, method: str) -> None:
    net = made(method, images)
    layers = [m for m in net.branches.modules() if isinstance(m, CodeLayer)]
    whole = [layer.quant_weight() for layer in layers]
    set_quant_noise(net, 0.3)
    for layer, codes in zip(layers, whole, strict=True):
        torch.manual_seed(5)
        noisy = layer.quant_weight()
        torch.manual_seed(5)
        mask = torch.rand_like(noisy) < 0.3
        assert torch.equal(noisy[mask], codes[mask])
        values, lower, upper = weight_range(layer).placed(layer.effective_weight())
        low, high = layer.weight_format.span
        real = low + (high - low) * (values - lower) / (upper - lower)
        divisor = layer.weight_quant.tensor_quant.divisor
        torch.testing.assert_close(noisy[~mask] / divisor, real[~mask])
        # no further than half a step, or a whole one of bins, unless clipped
        inside = (values >= lower) & (values <= upper)
        step = layer.weight_format.step * layer.weight_format.shift
        assert (noisy - codes)[inside].abs().max() <= step * 1.01


@every_method
def test_gradients_of_the_forward_with_that_mask(images: Tensor, method: str) -> None:
    """Of one layer, by autograd through the mask; its bytes are not those of integers."""
    net = made(method, images)
    layer: Any = net.branches[0].conv2
    set_quant_noise(net, 0.5)
    x = torch.randint(0, 4, (1, 6, 4, 4)).float()  # fewer than weights: codes could be kept
    torch.manual_seed(2)
    layer(x).square().sum().backward()
    found = [p.grad.clone() for p in layer.parameters() if p.grad is not None]
    layer.zero_grad()
    torch.manual_seed(2)
    weight = layer.quant_weight() * layer.output_scale
    torch.nn.functional.conv2d(x, weight, layer.bias, padding=1).square().sum().backward()
    for one, parameter in zip(
        found, (p for p in layer.parameters() if p.grad is not None), strict=True
    ):
        torch.testing.assert_close(one, parameter.grad)
    assert len(found) >= 2


def test_evaluation_is_that_of_all_quantized(images: Tensor) -> None:
    net = made("multiquant", images)
    plain = copy.deepcopy(net)
    set_quant_noise(net, 0.5)
    with torch.no_grad():
        assert torch.equal(copy.deepcopy(net).eval()(images), plain.eval()(images))
        assert torch.equal(made("multiquant", images)(images), net(images))  # learns nothing
    assert list(net.state_dict()) == list(plain.state_dict())
    step = InPlaceDistillation(net)
    losses = [float(step(images, torch.arange(len(images)))["loss"].detach()) for _ in range(2)]
    assert losses[0] != losses[1]
    set_quant_noise(net, None)
    losses = [float(step(images, torch.arange(len(images)))["loss"].detach()) for _ in range(2)]
    assert losses[0] == losses[1]
    set_quant_noise(net, 1.0)
    all_of_them = float(step(images, torch.arange(len(images)))["loss"].detach())
    assert all_of_them == losses[0]


@pytest.mark.parametrize("share", [0, 1.5, -0.1, "half", True])
def test_no_share(images: Tensor, share: Any) -> None:
    with pytest.raises(ConfigError, match="share: expected one above 0 and at most 1"):
        set_quant_noise(made("multiquant", images), share)
