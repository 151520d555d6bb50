"""Weights of nine bits in one byte: the odd integers of eight bits, halved."""

from brevitas.nn.quant_layer import QuantWeightBiasInputOutputLayer as QuantWBIOL
from torch import Tensor, nn

from brevitas_multiquant.core.precision import described
from brevitas_multiquant.errors import ExportError
from brevitas_multiquant.export.exporter import copy_of_modules
from brevitas_multiquant.nn.subnet import Subnet
from brevitas_multiquant.quant.plain import OutputScale, plain_layer

BYTE = 8
LARGEST = 127


def halve(integers: Tensor) -> Tensor:
    """Half of each integer; of the odd ones in turn rounded up and down.

    So that their errors cancel where neighbours of the input are alike: the sum of the errors of
    an output channel is 0 or one half.

    Args:
        integers: weights (O, I / groups, ...) from -255 to 255.

    Example:
        >>> import torch
        >>> halve(torch.tensor([[3.0, 3.0, -1.0, 4.0]]))
        tensor([[2., 1., 0., 2.]])
    """
    rows = integers.flatten(1)
    odd = rows.remainder(2) != 0
    up = odd & (odd.cumsum(1).remainder(2) == 1)
    return (rows.div(2).floor() + up).clamp(-LARGEST, LARGEST).view_as(integers)


def with_bytes(subnet: Subnet) -> tuple[Subnet, list[str]]:
    """The same network with weights of at most eight bits.

    Args:
        subnet: of `brevitas_multiquant.extract_subnet`; not changed.

    Returns:
        A copy, and the module paths of the layers whose weights were halved.

    Raises:
        ExportError: weights of more than nine bits.
    """
    replaced: dict[nn.Module, nn.Module] = {}
    names = []
    for name, module in subnet.named_modules():
        if not isinstance(module, nn.Sequential) or not len(module):
            continue
        layer = module[0]
        if not isinstance(layer, QuantWBIOL) or int(layer.weight_quant.bit_width()) <= BYTE:
            continue
        integers = layer.weight.detach()
        if integers.abs().max() > 2 * LARGEST + 1:
            raise ExportError(
                f"export at {described(subnet.setting)}: expected weights of at most 9 bits, got "
                f"{int(layer.weight_quant.bit_width())} at {name}; no kernel multiplies bytes by "
                "them: take fewer bits, or leave integer=True out"
            )
        scale = module[1]
        assert isinstance(scale, OutputScale)
        half = plain_layer(layer, halve(integers), scale.scale * 2, BYTE, LARGEST)
        half[1] = OutputScale(scale.scale * 2, scale.bias)
        replaced[module] = half.eval()
        names.append(name)
    return (copy_of_modules(subnet, replaced) if replaced else subnet), names  # type: ignore[return-value]
