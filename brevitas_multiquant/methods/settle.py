"""An assignment for good, in place: as if the network had been built with it."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from brevitas.core.bit_width import BitWidthConst

from brevitas_multiquant.core.config import MultiQuantConfig
from brevitas_multiquant.core.panel import Dial
from brevitas_multiquant.core.precision import Assignment
from brevitas_multiquant.errors import BitWidthError, ConfigError
from brevitas_multiquant.methods.catalogue import own_grid
from brevitas_multiquant.nn.network import MultiQuantNet
from brevitas_multiquant.nn.stored import layout_of
from brevitas_multiquant.nn.switchable import SwitchableQuantizer
from brevitas_multiquant.quant.channel_bits import ChannelBits
from brevitas_multiquant.quant.layers import CodeLayer, weight_range
from brevitas_multiquant.quant.proxies import activation_tensor_quant
from brevitas_multiquant.quant.tensor_quant import Fixed

INDIVIDUAL = "individual"

CHANNEL_GRID = "original"
"""Of weights whose bits are learned, and of channels that have some of their own."""


def settle(
    net: MultiQuantNet,
    assignment: Assignment,
    channels: Mapping[str, Sequence[int]] | None = None,
) -> None:
    """Give the sites of a network of the method ``"individual"`` other bits, for good.

    Afterwards it is what ``multiquantize(model, bits=assignment)`` would have built; modules,
    parameters and ranges are those that it has, so that optimizers go on.

    Args:
        net: changed in place.
        assignment: of all of its sites, at the bit-width that it has.
        channels: layer -> bits of each of its output channels, 0 for one that is pruned; its
            weights have the most of them.

    Raises:
        ConfigError: a network of another method.
        BitWidthError: an assignment or channels that do not fit.

    Example:
        >>> from torchvision.models import resnet18
        >>> from brevitas_multiquant import multiquantize
        >>> net = multiquantize(
        ...     resnet18(num_classes=10), [8], method="individual", input_shape=(1, 3, 32, 32)
        ... )
        >>> settle(net, Assignment(8, {site: (2, 4) for site in net.sites}))
        >>> print(net.assignment["layer1.0.conv1"])
        Precision(weight=2, activation=4)
        >>> print(net.branches[0].get_submodule("layer1.0.conv1").weight_format)
        odd (-3, -1, 1, 3)
    """
    if net.config.method != INDIVIDUAL:
        raise ConfigError(
            f"settle: expected a network of the method {INDIVIDUAL!r}, got {net.config.method!r}"
        )
    if channels and net.config.grid != CHANNEL_GRID:
        raise ConfigError(
            f"settle: expected the grid {CHANNEL_GRID!r} for channels of bits of their own, got "
            f"{net.config.grid!r}"
        )
    missing = [site for site in net.sites if site not in assignment]
    if missing:
        raise BitWidthError(f"settle: expected bits of every site, got none of {missing}")
    assignment.require_fits("settle", net.bits, net.sites, None, fixed=assignment)
    config = replace(net.config, assignment=assignment)
    layers = dict(_layers(net))
    own = {name: _checked(name, layers, bits) for name, bits in (channels or {}).items()}
    net.config = config
    net._active.fix(assignment)
    for module in net.modules():
        if isinstance(module, SwitchableQuantizer) and isinstance(module.dial, Dial):
            for member in module.values():
                _settle_activations(activation_tensor_quant(member), module.dial.bits)
    for name, layer in layers.items():
        _settle_weights(config, layer, own.get(name))
    net.layout = layout_of(net)


def _layers(net: MultiQuantNet) -> list[tuple[str, Any]]:
    """The layers that read sites, by their names in the branch."""
    return [
        (name, module)
        for branch in net.branches
        for name, module in branch.named_modules()
        if isinstance(module, CodeLayer) and isinstance(module.input_dial, Dial)
    ]


def _settle_activations(codes: Any, bits: int) -> None:
    codes.bits = bits
    codes.bit_width_impl = BitWidthConst(bits)


def _settle_weights(config: MultiQuantConfig, layer: Any, channels: ChannelBits | None) -> None:
    codes = layer.weight_quant.tensor_quant
    grid = own_grid(config, layer.input_dial.weight)
    del codes.grid_impl  # a module or none
    codes.grid_impl = channels or Fixed(grid)
    codes.bit_width_impl = BitWidthConst(grid.integer_bits)
    weight_range(layer).weight_format = grid


def _checked(name: str, layers: Mapping[str, Any], bits: Sequence[int]) -> ChannelBits:
    if name not in layers:
        raise BitWidthError(f"channels: expected layers of {list(layers)}, got {name!r}")
    weight = layers[name].weight
    if len(bits) != len(weight):
        raise BitWidthError(
            f"channels, {name}: expected bits of {len(weight)} output channels, got {len(bits)}"
        )
    made = ChannelBits(bits, weight.dim())
    return made if weight.is_meta else made.to(weight.device)  # a network without memory keeps it
