"""Weights as sums of soft bits, each with a mask: the parametrisation of CSQ.

CSQ (Xiao et al., arXiv:2212.02770): with n bits, N = 2**n - 1, and a temperature T,

    w = sum over b of (sigma(T p_b) - sigma(T n_b)) sigma(T m_b) 2**b / N,

p and n for every weight and bit, m for every bit of a layer. As T grows the sigmoids become steps:
w is an integer over N, and bits whose mask is closed are in none of a layer's weights. Here w lies
between -1 and 1, as all weights; the paper's scale of the layer is absorbed by the norm behind it.

That is 2 n numbers for each weight: for the 0.27 million weights of ResNet-20 and 8 bits 17 MB, and
as much again for gradients and for momenta; for the 11 million of ResNet-18 two gigabytes.
"""

from typing import Any

import torch
from torch import Tensor, nn

from brevitas_multiquant.quant.tensor_quant import QuantArgs, WeightCodes

START = 2.0
"""Magnitude of p and n at first: at T = 1 a soft bit is 0.12 or 0.88."""


class Masks(nn.Module):
    """m of the bits of some layers, the lowest first, and the temperature of all.

    Args:
        count: of the masks' rows.
        bits: n.

    Attributes:
        values: (rows, n), a parameter.
        temperature: T, a scalar.
    """

    learns_apart = True
    """Its parameters are for no optimizer of the network's."""

    temperature: Tensor

    def __init__(self, count: int, bits: int) -> None:
        super().__init__()
        self.values = nn.Parameter(torch.ones(count, bits))
        self.register_buffer("temperature", torch.ones(()))

    def live(self) -> Tensor:
        """How many bits of each row are open."""
        return (self.values > 0).sum(1)


class BitPlanes(nn.Module):
    """p and n of a layer's weights.

    Args:
        values: the weights that they start as, between -1 and 1, any shape.
        bits: n.

    Example:
        >>> planes = BitPlanes(torch.tensor([1.0, -0.4, 0.0]), bits=2)
        >>> masks = Masks(1, 2)
        >>> masks.temperature.fill_(1000.0)
        tensor(1000.)
        >>> planes(masks.values[0], masks.temperature)
        tensor([ 1.0000, -0.3333,  0.0000], grad_fn=<SumBackward1>)
    """

    def __init__(self, values: Tensor, bits: int) -> None:
        super().__init__()
        most = 2**bits - 1
        integers = (values.detach().abs() * most).round().clamp(max=most).long()
        powers = 2 ** torch.arange(bits, device=values.device)
        is_set = (integers[None] // powers.view(-1, *[1] * values.dim())) % 2 == 1
        signs = values.detach().sign()[None]
        for name, sign in (("positive", 1), ("negative", -1)):
            wanted = is_set & (signs == sign)
            start = torch.where(wanted, START, -START).to(values.dtype)
            self.register_parameter(name, nn.Parameter(start))
        self.register_buffer("shares", powers.to(values.dtype) / most, persistent=False)

    shares: Tensor
    positive: Tensor
    negative: Tensor

    def forward(self, masks: Tensor, temperature: Tensor) -> Tensor:
        """The weights.

        Args:
            masks: m, (n,).
            temperature: T.
        """
        soft = torch.sigmoid(temperature * self.positive)
        soft = soft - torch.sigmoid(temperature * self.negative)
        factors = torch.sigmoid(temperature * masks) * self.shares
        return (soft * factors.view(-1, *[1] * (soft.dim() - 1))).sum(0)


class BitPlaneWeights(WeightCodes):
    """`WeightCodes` while their bits are soft: values in [-1, 1], not of the latent weight.

    Attributes:
        planes: of the layer.
        masks: of the search, which holds them.
        row: of the masks.
    """

    are_values = True
    planes: BitPlanes
    masks: list[Masks]
    row: int

    def forward(self, weight: Tensor) -> QuantArgs:
        """Values of the planes; ``weight`` is not read."""
        (masks,) = self.masks  # in a list: it is no child of every layer
        return self._with_metadata(self.planes(masks.values[self.row], masks.temperature))


def soften(codes: Any, weight: Tensor, masks: Masks, row: int) -> None:
    """Let a quantizer's weights be soft bits from here on, starting near what they are.

    Args:
        codes: `WeightCodes`, changed in place.
        weight: of the layer.
        masks: of all layers.
        row: of this one.
    """
    values, lower, upper = codes.range_impl.placed(weight)
    place = ((values - lower) / (upper - lower)).clamp(0, 1)
    codes.planes = BitPlanes((2 * place - 1).detach(), masks.values.shape[1])
    codes.masks, codes.row = [masks], row
    codes.__class__ = BitPlaneWeights


@torch.no_grad()
def harden(codes: Any, weight: Tensor) -> None:
    """The inverse of `soften`: the latent weight takes the values of the soft bits."""
    values = codes(weight)[0]
    del codes.planes, codes.masks, codes.row
    codes.__class__ = WeightCodes
    _, lower, upper = codes.range_impl.placed(weight)
    weight.copy_(lower + (upper - lower) * (values + 1) / 2)
