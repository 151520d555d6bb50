"""Evaluation that overwrites what nobody else reads: fewer tensors, the same bits."""

import pytest
import torch
from torch import nn
from torchvision.models import densenet121, resnet18

from brevitas_multiquant import calibrate, multiquantize
from brevitas_multiquant.core.clip_quantize import quantize_activation
from brevitas_multiquant.nn.switchable import ScaleShiftNorm
from brevitas_multiquant.quant.tensor_quant import ActivationCodes


def overwriting(net):
    return [module for module in net.modules() if getattr(module, "overwrites", False)]


@pytest.mark.parametrize("bits", [2, 5, 16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_codes_in_place_are_the_codes(bits, dtype):
    x = torch.linspace(-2, 3, 1001, dtype=dtype)
    lower, upper = torch.tensor(-0.7), torch.tensor(1.9)
    expected = quantize_activation(x, lower, upper, bits)
    with torch.no_grad():
        codes = quantize_activation(x.clone(), lower, upper, bits, overwrite=True)
    assert torch.equal(codes, expected) and codes.dtype == expected.dtype


def test_nothing_is_overwritten_while_gradients_are_recorded():
    x = torch.linspace(-2, 3, 7)
    before = x.clone()
    quantize_activation(x, torch.tensor(0.0), torch.tensor(1.0), 4, overwrite=True)
    assert torch.equal(x, before)


@pytest.mark.parametrize(
    ("constructor", "profile"), [(resnet18, "paper"), (resnet18, "finn"), (densenet121, "paper")]
)
def test_overwriting_changes_no_bit(constructor, profile):
    shape = (1, 3, 32, 32)
    net = multiquantize(constructor(num_classes=10), [2, 3, 4], input_shape=shape, profile=profile)
    images = torch.rand(4, 3, 32, 32)
    calibrate(net, [images])
    net.eval()
    marked = overwriting(net)
    kinds = {type(module) for module in marked}
    assert ActivationCodes in kinds
    assert any(issubclass(kind, ScaleShiftNorm) for kind in kinds)
    for bits in net.bits:
        with torch.no_grad(), net.at_bits(bits):
            quick = net(images)
            again = net(images)
            for module in marked:
                module.overwrites = False
            expected = net(images)
            for module in marked:
                module.overwrites = True
        assert torch.equal(quick, expected) and torch.equal(again, expected)


class ReadTwice(nn.Module):
    """A norm whose input and whose output somebody else reads, behind the stem."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv, self.other = (nn.Conv2d(c, 8, 3, padding=1) for c in (3, 8, 8))
        self.norm = nn.BatchNorm2d(8)
        self.fc = nn.Linear(8, 5)

    def forward(self, x):
        y = self.conv(self.stem(x).relu())
        z = self.norm(y)
        return self.fc((self.other(z) + y + z).mean((2, 3)))


def test_what_others_read_is_not_overwritten(make_net, images):
    assert not overwriting(make_net(ReadTwice()))
