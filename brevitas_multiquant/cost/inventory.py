"""The layers of a network, measured once: multiply-accumulates, weights, and bits of both."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from brevitas_multiquant.core.output_structure import Value, run_part
from brevitas_multiquant.core.precision import Setting, network_bits
from brevitas_multiquant.errors import ConfigError
from brevitas_multiquant.nn.network import MultiQuantNet, device_of
from brevitas_multiquant.quant.entries import FLOAT_BYTES
from brevitas_multiquant.quant.geometry import macs_of
from brevitas_multiquant.quant.layers import WEIGHTED
from brevitas_multiquant.quant.member import INPUT, WEIGHT, Site, answers_of

FLOAT_BITS = 8 * FLOAT_BYTES

STEM, BRANCH, HEAD = "stem", "branch", "head"
"""Parts of a network that layers are in."""


@dataclass(frozen=True)
class Layer:
    """A convolution or linear layer, or a module that says what its weights are.

    Args:
        part: ``"stem"``, ``"branch"`` or ``"head"``.
        name: in its part.
        macs: multiply-accumulates per image.
        weights: how many it has.
        weight: its weights as integers; None in a float layer.
        input: the integers that they are multiplied with; None in a float layer.
    """

    part: str
    name: str
    macs: int
    weights: int
    weight: Site | None = None
    input: Site | None = None

    @property
    def is_float(self) -> bool:
        """Whether its weights are floats."""
        return self.weight is None

    def bits_at(self, setting: Setting) -> tuple[int, int]:
        """Bits of its weights, and of what they are multiplied with, at a bit-width or assignment.

        Example:
            >>> from brevitas_multiquant.core.precision import Assignment
            >>> layer = Layer("branch", "c", 100, 10, Site(2), Site(assigned=("c", "activation")))
            >>> layer.bits_at(Assignment(4, {"c": (2, 3)}))
            (2, 3)
        """
        weight, read = (s.at(setting) if s else FLOAT_BITS for s in (self.weight, self.input))
        return weight, read


@dataclass(frozen=True)
class Inventory:
    """Every layer of a network, and which of them run at a bit-width.

    Args:
        stem: its layers, in the order in which they run.
        branches: bit-width -> the layers of the branches that run, branch by branch.
        head: its layers.
    """

    stem: tuple[Layer, ...]
    branches: Mapping[int, tuple[Layer, ...]]
    head: tuple[Layer, ...]

    def at(self, setting: Setting) -> tuple[Layer, ...]:
        """The layers that run at a bit-width or assignment, in order."""
        return (*self.stem, *self.branches[network_bits(setting)], *self.head)


def inventory_of(net: MultiQuantNet, shape: tuple[int, ...]) -> Inventory:
    """The layers of a network, from one image through each part with all quantizers off.

    Branches whose layers have the same shapes are measured once.

    Args:
        net: not changed, not even for a moment.
        shape: (N, C, H, W) of images; counts are per image.

    Raises:
        ConfigError: images of that shape do not pass the network.

    Example:
        >>> from torchvision.models import resnet18
        >>> from brevitas_multiquant import multiquantize
        >>> net = multiquantize(resnet18(), [2, 4], input_shape=(1, 3, 64, 64))
        >>> layers = inventory_of(net, (1, 3, 64, 64))
        >>> [layer.name for layer in layers.stem], layers.head[0].bits_at(4)
        (['conv1'], (32, 32))
        >>> layers.branches[4][0].name, layers.branches[4][0].bits_at(4)
        ('layer1.0.conv1', (2, 4))
    """
    try:
        return _measured(net.view().eval(), shape)  # modes, hooks and bit-width are its own
    except (RuntimeError, ValueError) as error:
        raise ConfigError(
            f"input_shape: expected (1, C, H, W) that the network takes, got {shape}: {error}"
        ) from error


def _measured(net: MultiQuantNet, shape: tuple[int, ...]) -> Inventory:
    parameter = next(net.parameters())
    image = torch.zeros((1, *shape[1:]), device=device_of(net), dtype=parameter.dtype)
    measured: dict[object, tuple[Layer, ...]] = {}
    at_bits = {}
    with torch.no_grad(), net.floating():
        features, stem = _layers_of(STEM, net.stem, image)
        for bits in net.bits:
            running: list[Layer] = []
            for branch in net.branches_at(bits):
                shapes = _shapes(branch)
                if shapes not in measured:
                    with net.at_bits(bits):
                        merged, measured[shapes] = _layers_of(BRANCH, branch, features)
                running += measured[shapes]
            at_bits[bits] = tuple(running)
        _, head = _layers_of(HEAD, net.head, merged)
    return Inventory(stem, at_bits, head)


def _weighted(part: nn.Module) -> dict[str, nn.Module]:
    """The modules of a part that multiply by weights, by name."""
    return {
        name: module
        for name, module in part.named_modules()
        if isinstance(module, WEIGHTED) or WEIGHT in answers_of(module).sites()
    }


def _shapes(part: nn.Module) -> tuple[tuple[str, torch.Size], ...]:
    return tuple((name, layer.weight.shape) for name, layer in _weighted(part).items())  # type: ignore[misc]


def _layers_of(part: str, root: nn.Module, x: Value) -> tuple[Value, tuple[Layer, ...]]:
    """What a part gives for one image, and its layers, in the order in which they first ran."""
    macs: Counter[nn.Module] = Counter()

    def count(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        macs[layer] += layer_macs(layer, output, inputs[0])

    names = {layer: name for name, layer in _weighted(root).items()}
    hooks = [layer.register_forward_hook(count) for layer in names]
    try:
        output = run_part(root, x)
    finally:
        for hook in hooks:
            hook.remove()
    return output, tuple(_layer(part, names[layer], layer, macs[layer]) for layer in macs)


def _layer(part: str, name: str, layer: nn.Module, macs: int) -> Layer:
    sites, weight = answers_of(layer).sites(), layer.weight
    assert isinstance(weight, Tensor)
    return Layer(part, name, macs, weight.numel(), sites.get(WEIGHT), sites.get(INPUT))


def layer_macs(layer: nn.Module, output: Tensor, read: Tensor | None = None) -> int:
    """Multiply-accumulates of one call of a convolution or linear layer.

    Args:
        layer: the layer.
        output: what it gave, batch included.
        read: what it read; only a transposed convolution, which multiplies that, needs it.

    Example:
        >>> conv = nn.Conv2d(3, 8, 3, padding=1)
        >>> layer_macs(conv, conv(torch.zeros(1, 3, 4, 4)))
        3456
    """
    return macs_of(layer, 0 if read is None else read.numel(), output.numel())
