"""Costs of one layer at every pair of bit-widths, and between them."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from numbers import Real
from typing import Any

import numpy as np

from brevitas_multiquant.errors import HardwareError
from brevitas_multiquant.luts.folding import fold
from brevitas_multiquant.luts.nodes import Node
from brevitas_multiquant.luts.products import DspBlock
from brevitas_multiquant.luts.resources import NAMES, Resources
from brevitas_multiquant.luts.rules import total


@dataclass(frozen=True, eq=False)
class ResourceTable:
    """Resources at pairs of bit-widths; bilinear between neighbouring ones.

    Args:
        weight_bits: ascending.
        activation_bits: ascending.
        entries: ``entries[i][j]`` at ``weight_bits[i]`` and ``activation_bits[j]``.

    Raises:
        HardwareError: bit-widths that do not ascend, fewer than two of one, or another number of
            entries.
    """

    weight_bits: tuple[int, ...]
    activation_bits: tuple[int, ...]
    entries: tuple[tuple[Resources, ...], ...]

    def __post_init__(self) -> None:
        for name in ("weight_bits", "activation_bits"):
            axis = getattr(self, name)
            if len(axis) < 2 or sorted({*axis}) != list(axis):
                raise HardwareError(f"{name}: expected two or more, ascending, got {axis}")
        shape = len(self.weight_bits), len(self.activation_bits)
        got = len(self.entries), *sorted({len(row) for row in self.entries})
        if got != shape:
            raise HardwareError(f"entries: expected {shape[0]} rows of {shape[1]}, got {got}")

    @cached_property
    def values(self) -> np.ndarray:
        """The entries as numbers (resource, weight bits, activation bits)."""
        rows = [[[getattr(one, name) for one in row] for row in self.entries] for name in NAMES]
        return np.array(rows, dtype=np.float64)

    def at(self, weight_bits: Any, activation_bits: Any) -> Resources:
        """Resources at real-valued bit-widths.

        Numbers give numbers; tensors, of one shape or of shapes that broadcast, give tensors by the
        same arithmetic, differentiable in both. At an entry the slope is that to its right, at the
        last one that to its left: where a bit-width is rounded down and its fraction is learned, a
        gradient exists at every whole number.

        Args:
            weight_bits: within the table. Tensors are not checked: that would wait for a device;
                beyond its ends they continue the outermost cells.
            activation_bits: the same.

        Raises:
            HardwareError: a number outside the table.
        """
        low, right, down = _cell(self.weight_bits, weight_bits, "weight_bits")
        near, after, across = _cell(self.activation_bits, activation_bits, "activation_bits")
        values = _like(self.values, weight_bits, activation_bits)
        first = values[:, low, near] * (1 - across) + values[:, low, after] * across
        second = values[:, right, near] * (1 - across) + values[:, right, after] * across
        found = first * (1 - down) + second * down
        if isinstance(values, np.ndarray):
            found = found.tolist()
        return Resources(*(found[index] for index in range(len(NAMES))))


def _cell(axis: Sequence[int], bits: Any, name: str) -> tuple[Any, Any, Any]:
    """Indices of the entries on both sides of a bit-width, and how far it is from the first."""
    if isinstance(bits, Real) and not axis[0] <= bits <= axis[-1]:
        raise HardwareError(f"{name}: expected {axis[0]} to {axis[-1]}, got {bits}")
    index = sum((bits >= inner) * 1 for inner in axis[1:-1])
    points = _like(np.array(axis, dtype=np.float64), bits)
    start = points[index]
    return index, index + 1, (bits - start) / (points[index + 1] - start)


def _like(values: np.ndarray, *examples: Any) -> Any:
    """The values as a tensor of the examples' kind, or as they are where these are numbers."""
    return next((one.new_tensor(values) for one in examples if hasattr(one, "new_tensor")), values)


def tabulate(
    layers: Callable[[int, int], Iterable[Node]],
    weight_bits: Iterable[int],
    activation_bits: Iterable[int],
    target: int,
    dsp: DspBlock = "DSP48E2",
) -> ResourceTable:
    """The table of what belongs to one layer of a network.

    Args:
        layers: what it is in hardware, at (weight bits, activation bits): its window, its product,
            its thresholds. Which activations vary, and what that does to sums, is up to it.
        weight_bits: candidates.
        activation_bits: candidates.
        target: cycles a frame, for `brevitas_multiquant.luts.folding.fold`.
        dsp: the board's kind of DSP.

    Example:
        >>> from brevitas_multiquant.luts import MatrixProduct, largest_accumulator_bits
        >>> def layers(weights, activations):
        ...     sums = largest_accumulator_bits(144, weights, activations)
        ...     return [MatrixProduct(144, 16, 1024, weights, activations, sums)]
        >>> table = tabulate(layers, (2, 3, 4), (2, 3, 4), target=200000)
        >>> table.at(3, 3).luts, table.at(3.5, 3).luts, table.at(4, 4).dsp
        (546.0, 658.0, 12.0)
    """
    rows, columns = sorted({*weight_bits}), sorted({*activation_bits})
    entries = tuple(
        tuple(total(fold([*layers(row, column)], target, dsp), dsp) for column in columns)
        for row in rows
    )
    return ResourceTable(tuple(rows), tuple(columns), entries)
