"""What runs at each bit-width, layer by layer, and what it costs."""

from collections.abc import Iterable
from typing import NamedTuple

from brevitas_multiquant import MultiQuantNet, cost
from brevitas_multiquant.core.precision import Setting
from brevitas_multiquant.cost.inventory import Layer, inventory_of
from brevitas_multiquant.cost.models import bitops
from brevitas_multiquant.cost.table import BitWidthCost


class LayerRow(NamedTuple):
    """A layer at one bit-width, in all the branches that run.

    Args:
        name: of the layer.
        branches: how many of them have it; 1 for stem and head.
        weight: bits of the weights of one; None where they are float.
        activation: bits of what they are multiplied with; None as for weights.
        macs: multiply-accumulates per image of all of them.
        bitops: bit operations per image; 0 where weights are float.
    """

    name: str
    branches: int
    weight: int | None
    activation: int | None
    macs: int
    bitops: int


class Running(NamedTuple):
    """What runs at a bit-width.

    Args:
        cost: of all of it, per image.
        layers: in the order in which they run.
    """

    cost: BitWidthCost
    layers: tuple[LayerRow, ...]


def what_runs(net: MultiQuantNet, shape: tuple[int, ...]) -> dict[int, Running]:
    """Bit-width -> cost and layers; at the assignment that a network has for good, if it does.

    Args:
        net: not changed.
        shape: (N, C, H, W) of images.

    Raises:
        ConfigError: images of that shape do not pass the network.

    Example:
        >>> from torchvision.models import resnet18
        >>> from brevitas_multiquant import multiquantize
        >>> net = multiquantize(resnet18(), [2, 4], input_shape=(1, 3, 32, 32))
        >>> running = what_runs(net, (1, 3, 32, 32))
        >>> [(row.name, row.branches, row.weight, row.activation) for row in running[4].layers[:2]]
        [('conv1', 1, None, None), ('layer1.0.conv1', 2, 2, 4)]
        >>> sum(row.bitops for row in running[4].layers) == running[4].cost.bitops
        True
    """
    measured, costs = inventory_of(net, shape), cost(net, shape)
    return {
        bits: Running(costs[bits], tuple(layer_rows(measured.at(bits), bits))) for bits in net.bits
    }


def in_bitops(most: float) -> tuple[float, str]:
    """What to divide bit operations by, up to so many, and the unit that they are in then.

    Example:
        >>> in_bitops(48e6)
        (1000000.0, 'MBitOPs')
    """
    return (1e9, "GBitOPs") if most >= 1e9 else (1e6, "MBitOPs")


def layer_rows(layers: Iterable[Layer], setting: Setting) -> list[LayerRow]:
    """Layers of one name in one row.

    Args:
        layers: those that run, in order.
        setting: the bit-width or assignment at which they do.
    """
    named: dict[tuple[str, str], list[Layer]] = {}
    for layer in layers:
        named.setdefault((layer.part, layer.name), []).append(layer)
    return [_row(name, same, setting) for (_, name), same in named.items()]


def _row(name: str, same: list[Layer], setting: Setting) -> LayerRow:
    macs = sum(layer.macs for layer in same)
    if same[0].is_float:
        return LayerRow(name, len(same), None, None, macs, 0)
    weight, activation = same[0].bits_at(setting)
    total = sum(bitops(layer.macs, *layer.bits_at(setting)) for layer in same)
    return LayerRow(name, len(same), weight, activation, macs, total)
