"""What layers cost at given bits: the same arithmetic for numbers and for tensors.

Bits may be whole numbers, as in a table, or tensors that take a gradient, as in a loss.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from brevitas_multiquant.core.config import check_choice
from brevitas_multiquant.cost.inventory import HEAD, STEM, Layer

Number = Any
"""An int, a float, or a tensor."""

LayerBits = tuple[Number, Number]
"""Bits of a layer's weights, and of what they are multiplied with."""


def bitops(macs: int, weight_bits: Number, activation_bits: Number) -> Number:
    """Bit operations: MACs x weight bits x activation bits.

    Example:
        >>> import torch
        >>> bits = torch.tensor(2.5, requires_grad=True)
        >>> bitops(100, 2, 4), bitops(100, bits, 4).item()
        (800, 1000.0)
    """
    return macs * weight_bits * activation_bits


def weight_bytes(weights: int, bits: Number) -> Number:
    """Storage of weights; a file fills up the last byte of each layer.

    Example:
        >>> weight_bytes(1000, 2), weight_bytes(1000, 2.5)
        (250.0, 312.5)
    """
    return weights * bits / 8


@dataclass(frozen=True)
class Convention:
    """What counts as a network's bit operations; numbers of two conventions do not compare.

    Args:
        floats: whether float layers count, at 32 bits, where nothing else is said of them.
        first: bits of weights and image in the first layer, whatever it has; None: what it has.
        classifier: the same of the last layer; None of the two: what it has.
    """

    floats: bool = True
    first: tuple[int | None, int | None] = (None, None)
    classifier: tuple[int | None, int | None] = (None, None)


CONVENTIONS = {
    "quantized": Convention(floats=False),
    "fracbits": Convention(first=(8, 8), classifier=(8, None)),
}
"""``"quantized"``: layers of integers alone, float ones are left out. ``"fracbits"``, as FracBits
(Yang and Jin, AAAI 2021) counts: 8-bit image and weights in the first layer, 8-bit weights in the
classifier, whatever they are here."""


def total_bitops(
    layers: Iterable[Layer],
    bits_of: Callable[[Layer], LayerBits],
    convention: str = "quantized",
) -> Number:
    """Bit operations of layers, per image.

    Args:
        layers: those that run, in order.
        bits_of: the bits of a layer: of its weights, and of what they are multiplied with.
        convention: one of `CONVENTIONS`.

    Raises:
        ConfigError: an unknown convention.

    Example:
        >>> layers = [Layer("stem", "conv", 100, 10), Layer("head", "fc", 10, 10)]
        >>> total_bitops(layers, lambda layer: (4, 4), "fracbits")  # 100 x 8 x 8 + 10 x 8 x 4
        6720
        >>> total_bitops(layers, lambda layer: (4, 4))  # both are float
        0
    """
    total: Number = 0
    for layer, pinned in counted_layers(layers, convention):
        both = zip(pinned, bits_of(layer), strict=True)
        weight, read = (own if fixed is None else fixed for fixed, own in both)
        total = total + bitops(layer.macs, weight, read)
    return total


def counted_layers(
    layers: Iterable[Layer], convention: str
) -> list[tuple[Layer, tuple[int | None, int | None]]]:
    """The layers that count as bit operations, and bits that a convention pins, None for others.

    Args:
        layers: those that run, in order.
        convention: one of `CONVENTIONS`.

    Raises:
        ConfigError: an unknown convention.

    Example:
        >>> layers = [Layer("stem", "conv", 100, 10), Layer("head", "fc", 10, 10)]
        >>> [(layer.name, pinned) for layer, pinned in counted_layers(layers, "fracbits")]
        [('conv', (8, 8)), ('fc', (8, None))]
        >>> counted_layers(layers, "quantized")
        []
    """
    check_choice("convention", convention, tuple(CONVENTIONS))
    counted, layers = CONVENTIONS[convention], list(layers)
    pinned = {
        **{id(layer): counted.first for layer in layers[:1] if layer.part == STEM},
        **{id(layer): counted.classifier for layer in layers[-1:] if layer.part == HEAD},
    }
    return [
        (layer, pinned.get(id(layer), (None, None)))
        for layer in layers
        if counted.floats or not layer.is_float
    ]
