"""What a float tensor of the graph is in integers: factors and bounds that nobody computed yet."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

Array = np.ndarray | float
"""fp64: one number, or one for each channel."""


@dataclass(frozen=True, eq=False)
class Integers:
    """A tensor of unsigned bytes in the new file, which stand for ``byte - zero_point``.

    Args:
        name: of the tensor.
        zero_point: the byte that stands for 0.
        lowest: smallest integer that can occur.
        highest: largest integer that can occur.
        shape: of the tensor.
    """

    name: str
    zero_point: int
    lowest: int
    highest: int
    shape: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Product:
    """What a convolution or linear layer makes of integers.

    Args:
        node: the old node.
        read: the input.
        weight: integers (O, I / groups, ...).
        geometry: stride, padding and the like, as ONNX's attributes.
    """

    node: Any
    read: Integers
    weight: np.ndarray
    geometry: Mapping[str, Any]


@dataclass(frozen=True, eq=False)
class Sum:
    """The sum of two tensors of integers.

    Args:
        node: the old node, which adds floats.
        left: an operand.
        right: an operand.
        step: of these floats.
        lowest: where it is cut off below.
    """

    node: Any
    left: Integers
    right: Integers
    step: float
    lowest: int

    @property
    def highest(self) -> int:
        """The largest that can occur."""
        return self.left.highest + self.right.highest


@dataclass(frozen=True, eq=False)
class Average:
    """The mean of integers over positions."""

    node: Any
    read: Integers


@dataclass(frozen=True, eq=False)
class Floats:
    """A float tensor of the file, as it is."""

    name: str


Source = Integers | Product | Sum | Average | Floats


@dataclass(frozen=True, eq=False)
class Value:
    """A float tensor: ``clip(scale * source + shift, lowest, highest)``, then moved.

    Args:
        source: what has been computed.
        shape: of the tensor.
        scale, shift, lowest, highest: one number, or one for each channel of the source.
        moves: nodes that choose among positions, in order; they wait for the integers.
        floored: whether it was rounded down, which only its quantizer asks.
    """

    source: Source
    shape: tuple[int, ...]
    scale: Array = 1.0
    shift: Array = 0.0
    lowest: Array = -np.inf
    highest: Array = np.inf
    moves: tuple[Any, ...] = ()
    floored: bool = False

    def times(self, factor: Array) -> "Value | None":
        """Multiplied; None where what is largest would become what is smallest."""
        if np.any(np.asarray(factor) < 0) and any(m.op_type == "MaxPool" for m in self.moves):
            return None
        ends = _product(self.lowest, factor), _product(self.highest, factor)
        return replace(
            self,
            scale=self.scale * factor,
            shift=self.shift * factor,
            lowest=np.minimum(*ends),
            highest=np.maximum(*ends),
        )

    def plus(self, summand: Array) -> "Value":
        """Added to."""
        return replace(
            self,
            shift=self.shift + summand,
            lowest=self.lowest + summand,
            highest=self.highest + summand,
        )

    def clipped(self, lowest: float, highest: float) -> "Value":
        """Between two bounds."""
        return replace(
            self,
            lowest=np.clip(self.lowest, lowest, highest),
            highest=np.clip(self.highest, lowest, highest),
        )

    @property
    def is_bounded(self) -> bool:
        """Whether there are bounds."""
        return bool(np.any(np.isfinite(self.lowest)) or np.any(np.isfinite(self.highest)))

    @property
    def step(self) -> float | None:
        """The one positive number that integers are multiplied with, if that is all."""
        if self.is_bounded or self.moves or self.floored or np.any(self.shift):
            return None
        scale = uniform(self.scale)
        return scale if scale is not None and scale > 0 else None


def uniform(numbers: Array) -> float | None:
    """The number that all channels have; None where they have several."""
    flat = np.asarray(numbers, dtype=np.float64).reshape(-1)
    return float(flat[0]) if np.all(flat == flat[0]) else None


def _product(bound: Array, factor: Array) -> np.ndarray:
    """Bounds times a factor; where that is 0, so is the product."""
    bound, factor = np.broadcast_arrays(bound, factor)
    finite = np.where(factor == 0, 0.0, bound)
    return np.asarray(finite * factor)
