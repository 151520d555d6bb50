"""Transposed convolutions as people call them: with an output size, as functions, in any module."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from brevitas_multiquant import calibrate, extract_subnet, load_packed, multiquantize, save_packed
from brevitas_multiquant.core.float_model import ModelSource
from brevitas_multiquant.errors import UntracedWarning
from brevitas_multiquant.export import export_qonnx
from brevitas_multiquant.quant.layers import TRANSPOSED, CodeLayer

SHAPE = (1, 3, 17, 15)
"""Odd: two sizes come down to the same one by a stride of two."""


class Base(nn.Module):
    """Stem, a layer of half the size, a transposed one back to it, their merge, scores."""

    def __init__(self, **options):
        super().__init__()
        self.stem, self.down = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 8, 3, 2, 1)
        self.up = nn.ConvTranspose2d(8, 4, 3, 2, 1, **options)
        self.merge, self.score = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 5, 1)

    def forward(self, x):
        skip = torch.relu(self.stem(x))
        low = torch.relu(self.down(skip))
        both = torch.cat([torch.relu(self.enlarged(low, skip)), skip], 1)
        return self.score(torch.relu(self.merge(both)))


class OfSkip(Base):
    def enlarged(self, low, skip):
        return self.up(low, output_size=skip.size())


class ByPlace(Base):
    def enlarged(self, low, skip):
        return self.up(low, skip.shape[-2:])


class Called(Base):
    """As a function of parameters."""

    def __init__(self):
        super().__init__()
        self.up = None
        self.weight, self.bias = nn.Parameter(torch.randn(8, 2, 3, 3)), nn.Parameter(torch.randn(4))

    def enlarged(self, low, skip):
        return F.conv_transpose2d(low, self.weight, self.bias, 2, 1, 0, 2, dilation=1)


class Dilated(Called):
    def enlarged(self, low, skip):
        wide = F.conv_transpose2d(low, self.weight, self.bias, 2, 2, groups=2, dilation=2)
        return wide[:, :, : skip.shape[2], : skip.shape[3]]


@pytest.mark.parametrize("kind", [OfSkip, ByPlace, Called, Dilated])
def test_equal_in_every_form(kind, tmp_path):
    torch.manual_seed(0)
    model, source = kind(), ModelSource("own", kind.__name__)
    net = multiquantize(model, [2, 3, 4], input_shape=SHAPE, source=source)
    (layer,) = (m for m in net.branches[0].modules() if isinstance(m, TRANSPOSED))
    assert isinstance(layer, CodeLayer)
    images = torch.randn(2, *SHAPE[1:])
    with torch.no_grad(), net.eval().floating(), net.at_bits(2):
        assert torch.equal(net(images), model.eval()(images))
    calibrate(net.train(), [images])
    loaded = load_packed(save_packed(net.eval(), tmp_path / "net.safetensors"), kind())
    for bits in net.bits:
        with torch.no_grad(), net.at_bits(bits), loaded.at_bits(bits):
            expected = net(images)
            assert expected.shape == (2, 5, *SHAPE[2:])
            assert torch.equal(extract_subnet(net, bits)(images), expected)
            assert torch.equal(loaded(images), expected)
    assert set(export_qonnx(net, tmp_path, bits=[2])) == {2}


class Untraced(nn.Module):
    """A module that decides by the values of what it reads."""

    def __init__(self):
        super().__init__()
        self.up = nn.ConvTranspose2d(8, 4, 3, 2, 1)

    def forward(self, low, skip):
        up = self.up(low, output_size=skip.size())
        return up if up.sum() > 0 else -up


class InUntraced(Base):
    def __init__(self):
        super().__init__()
        self.up = Untraced()

    def enlarged(self, low, skip):
        return self.up(low, skip)


def test_in_a_module_that_cannot_be_traced():
    with pytest.warns(UntracedWarning):
        net = multiquantize(InUntraced(), [2, 4], input_shape=SHAPE)
    images = torch.randn(2, *SHAPE[1:])
    calibrate(net, [images])
    with torch.no_grad(), net.eval().at_bits(4):
        assert torch.equal(extract_subnet(net, 4)(images), net(images))
