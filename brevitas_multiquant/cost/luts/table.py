"""Costs of one layer at every pair of bit-widths, and between them."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from math import inf
from typing import Any

import numpy as np

from brevitas_multiquant.cost.luts.folding import fold
from brevitas_multiquant.cost.luts.nodes import Node
from brevitas_multiquant.cost.luts.products import DspBlock
from brevitas_multiquant.cost.luts.resources import NAMES, Resources
from brevitas_multiquant.cost.luts.rules import total
from brevitas_multiquant.errors import HardwareError


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
    def rises(self) -> list[list[list[float]]]:
        """From entry to entry along both axes, the first from 0: [resource][weights][activations].

        Entries are the sums of what rises up to them; between them, of fractions of it.
        """
        entries = [[[getattr(one, name) for one in row] for row in self.entries] for name in NAMES]
        rises = np.diff(np.diff(entries, axis=1, prepend=0), axis=2, prepend=0)
        return rises.astype(np.float64).tolist()

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
        _check("weight_bits", self.weight_bits, weight_bits)
        _check("activation_bits", self.activation_bits, activation_bits)
        given = (weight_bits, activation_bits)
        make = next((one.new_tensor for one in given if hasattr(one, "new_tensor")), np.array)
        weights, activations = (one if hasattr(one, "new_tensor") else make(one) for one in given)
        rows = _passed(self.weight_bits, weights, make)[..., None, :, None]
        columns = _passed(self.activation_bits, activations, make)[..., None, None, :]
        found = (rows * make(self.rises) * columns).sum((-1, -2))
        parts = (found[..., index] for index in range(len(NAMES)))
        return Resources(*(one.item() if make is np.array else one for one in parts))


def _check(name: str, axis: Sequence[int], bits: Any) -> None:
    if isinstance(bits, (int, float, np.number)) and not axis[0] <= bits <= axis[-1]:
        raise HardwareError(f"{name}: expected {axis[0]} to {axis[-1]}, got {bits}")


def _passed(axis: Sequence[int], bits: Any, make: Callable[[Any], Any]) -> Any:
    """How much of the way to each entry, from the one before it, lies below ``bits``: (..., n).

    All of the way to the first. No index is taken from a tensor, which would wait for its device.
    """
    inner, gaps = axis[1:-1], [after - before for before, after in pairwise(axis)]
    from_, to = make([-inf, -inf, *inner]), make([-inf, *inner, inf])
    start, gap = make([0.0, *axis[:-1]]), make([1.0, *gaps])
    bits = bits[..., None]
    return ((bits >= from_) & (bits < to)) * ((bits - start) / gap) + (bits >= to) * 1.0


def tabulate(
    layers: Callable[[int, int], Iterable[Node]],
    weight_bits: Iterable[int],
    activation_bits: Iterable[int],
    target: int,
    dsp: DspBlock = "DSP48E2",
) -> ResourceTable:
    """The table of what belongs to one layer of a network, folded alone.

    Where another layer of the network misses the frame rate, FINN folds all layers for what that
    one manages: then give its cycles as the target.

    Args:
        layers: what it is in hardware, at (weight bits, activation bits): its window, its product,
            its thresholds. Which activations vary, and what that does to sums, is up to it.
        weight_bits: candidates.
        activation_bits: candidates.
        target: cycles a frame, for `brevitas_multiquant.cost.luts.folding.fold`.
        dsp: the board's kind of DSP.

    Example:
        >>> from brevitas_multiquant.cost.luts import ConvolutionShape
        >>> shape = ConvolutionShape(16, 16, (32, 32), (3, 3), padding=(1, 1))
        >>> table = tabulate(shape.layers, (2, 3, 4), (2, 3, 4), target=200000)
        >>> table.at(3, 3).luts, table.at(3.5, 3).luts, table.at(4, 4).dsp
        (936.0, 1048.0, 12.0)
    """
    rows, columns = sorted({*weight_bits}), sorted({*activation_bits})
    entries = tuple(
        tuple(total(fold([*layers(row, column)], target, dsp), dsp) for column in columns)
        for row in rows
    )
    return ResourceTable(tuple(rows), tuple(columns), entries)
