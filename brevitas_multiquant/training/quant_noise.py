"""Quant-Noise (Fan et al., arXiv:2004.07320): a random share of the weights quantized, others not.

In each forward of a training step every weight is quantized with the probability p, on its own, and
else takes part as it is. Its gradient passes either way: straight through the rounding, and
without any bias where there was none. Evaluation quantizes all. With p = 1 that is quantization-
aware training as everywhere else. The paper draws whole blocks for product quantization; for
scalar quantization a block is a weight, as here.
"""

from typing import Any

import torch
from torch import Tensor

from brevitas_multiquant.errors import ConfigError
from brevitas_multiquant.nn.given import given_network
from brevitas_multiquant.nn.network import MultiQuantNet
from brevitas_multiquant.quant.layers import CodeLayer
from brevitas_multiquant.quant.tensor_quant import QuantArgs, WeightCodes


class NoisyWeights(WeightCodes):
    """`WeightCodes` of which a forward that learns rounds a random share.

    Attributes:
        share: p.
    """

    share: float

    @property
    def are_whole(self) -> bool:
        """Whether what it gives are integers."""
        return not (self.training and torch.is_grad_enabled())

    def forward(self, weight: Tensor) -> QuantArgs:
        """Codes of a share of ``weight`` (any shape), and where the others lie between them."""
        codes, scale, zero_point, bits = super().forward(weight)
        if self.are_whole:
            return codes, scale, zero_point, bits
        values, lower, upper = self.range_impl.placed(weight)
        low, high = self.weight_format.span
        place = (values - lower) / (upper - lower)
        between = ((low + place * (high - low)) * self.divisor).to(codes.dtype)
        drawn = torch.rand_like(between) < self.share
        return torch.where(drawn, codes, between), scale, zero_point, bits


def set_quant_noise(net: MultiQuantNet, share: float | None) -> None:
    """Quantize a random share of the weights in the forwards of training; the rest stays float.

    What is drawn comes from torch's own generator, as for dropout, so that a run that seeds it for
    every step, as the recipes do, goes on to the bit. Nothing of it is in the state dict.

    Args:
        net: a network; changed in place.
        share: p, above 0 and at most 1; None: all of them again.

    Raises:
        NetworkError: a wrapped network, or none.
        ConfigError: another share, or a network whose bits are searched for.

    Example:
        >>> from torchvision.models import resnet18
        >>> from brevitas_multiquant import calibrate, multiquantize
        >>> net = multiquantize(resnet18(num_classes=10), [2, 4], input_shape=(1, 3, 32, 32))
        >>> calibrate(net, [torch.rand(4, 3, 32, 32)])
        >>> set_quant_noise(net.train(), 0.5)
        >>> layer = net.branches[0].get_submodule("layer1.0.conv1")
        >>> codes = layer.quant_weight()
        >>> 0.4 < (codes == codes.round()).float().mean().item() < 0.6
        True
        >>> codes = layer.eval().quant_weight()
        >>> torch.equal(codes, codes.round())
        True
    """
    net = given_network(net, "set_quant_noise")
    is_number = isinstance(share, (int, float)) and not isinstance(share, bool)
    if share is not None and not (is_number and 0 < share <= 1):
        raise ConfigError(f"share: expected one above 0 and at most 1, or None, got {share!r}")
    found = [m.weight_quant.tensor_quant for m in net.modules() if isinstance(m, CodeLayer)]
    others = {type(one).__name__ for one in found} - {"WeightCodes", "NoisyWeights"}
    if others:
        raise ConfigError(
            f"set_quant_noise: expected weights of whole bits, got {sorted(others)}: a search for "
            "bits is open, settle it first"
        )
    kind: Any = WeightCodes if share is None else NoisyWeights
    for quantizer in found:
        quantizer.__class__ = kind
        quantizer.__dict__.pop("share", None)
        if share is not None:
            quantizer.share = float(share)
