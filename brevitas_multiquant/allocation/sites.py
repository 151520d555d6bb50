"""The sites of a network, the layers that read each, and which bits of them can be chosen."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from brevitas_multiquant.core.panel import Dial
from brevitas_multiquant.core.precision import Assignment
from brevitas_multiquant.cost.inventory import BRANCH, Layer, inventory_of
from brevitas_multiquant.nn.network import MultiQuantNet
from brevitas_multiquant.quant.layers import CodeLayer

WEIGHT, ACTIVATION = "weight", "activation"
KINDS = (WEIGHT, ACTIVATION)
"""What of a site has bits: the weights that read it, and its activations."""

Width = tuple[str, str]
"""(site, one of `KINDS`): a bit-width that can be chosen."""


@dataclass(frozen=True)
class Sites:
    """What an allocator has to know of a network.

    Args:
        net: the network; of a float model, what it is converted to, which runs float.
        shape: (1, C, H, W) of images.
        bits: the network's bit-width, which chooses branches.
        layers: those that run, in order.
        of_layer: name of a layer of the branches -> the site that it reads.
        weight_bits: bits that weights have whatever is chosen; None: they are chosen.
        is_float: whether ``net`` stands for a float model, and has no quantizers to run.
        takes_any_bits: whether its sites may get bits that are none of the network's, for good.
        at: an assignment -> the network at it, with ranges, for what has to look into one.
        asked: the bit-width of the network that a float model is to become; None: it follows.
        tied: whether a site's weights have as many bits as its activations.
    """

    net: MultiQuantNet
    shape: tuple[int, ...]
    bits: int
    layers: tuple[Layer, ...]
    of_layer: Mapping[str, str]
    weight_bits: int | None
    is_float: bool = False
    takes_any_bits: bool = False
    at: Callable[[Assignment], MultiQuantNet] | None = None
    asked: int | None = None
    tied: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        """Of the sites, in the order in which they run."""
        return tuple(dict.fromkeys(self.of_layer.values()))

    def widths(self) -> Iterator[Width]:
        """Every bit-width that can be chosen."""
        kinds = KINDS if self.weight_bits is None else (ACTIVATION,)
        return ((site, kind) for site in self.names for kind in kinds)

    def site_of(self, layer: Layer) -> str | None:
        """The site that a layer reads; None for one of fixed bits."""
        return self.of_layer.get(layer.name) if layer.part == BRANCH else None

    def bits_of(self, layer: Layer, chosen: Mapping[Width, int]) -> tuple[int, int]:
        """Bits of a layer's weights, and of what they are multiplied with."""
        site = self.site_of(layer)
        if site is None:
            return layer.bits_at(self.bits)
        weight = self.weight_bits or chosen[site, WEIGHT]
        return weight, chosen[site, ACTIVATION]


def sites_of(
    net: MultiQuantNet, shape: tuple[int, ...], bits: int, weight_bits: int | None, **others: Any
) -> Sites:
    """The sites of a network at one of its bit-widths.

    Args:
        net: the network.
        shape: (N, C, H, W) of images.
        bits: one of the network's.
        weight_bits: bits that weights have whatever is chosen; None: they are chosen.
        **others: of `Sites`; ``at`` is a view by default.
    """
    layers = inventory_of(net, shape).at(bits)
    of_layer = dict(_readers(net, bits))
    return Sites(net, shape, bits, layers, of_layer, weight_bits, **{"at": net.view, **others})


def _readers(net: MultiQuantNet, bits: int) -> Iterator[tuple[str, str]]:
    for branch in net.branches_at(bits):
        for name, module in branch.named_modules():
            if isinstance(module, CodeLayer) and isinstance(module.input_dial, Dial):
                yield name, module.input_dial.site
