"""Costs that somebody measured: of each layer, at bit-widths of its weights and activations."""

import csv
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import product
from math import isfinite
from pathlib import Path
from typing import Any

from brevitas_multiquant.errors import BudgetError, did_you_mean

LAYER, PAIR, ALIKE, COST = "layer", ("weight_bits", "activation_bits"), "bits", "cost"
COLUMNS = (LAYER, *PAIR, COST)
Key = tuple[str, int, int]
"""(layer, bits of its weights, bits of what it reads)."""

NAMED_ROWS = 6
"""Of missing rows, this many are named."""


class CostTable(Mapping[Key, float]):
    """(layer, bits of its weights, bits of what it reads) -> cost; hardware in the loop.

    Latencies, energies or areas from a board or a simulator, as OHQ (arXiv:2309.01945) and AMED
    (arXiv:2205.15437) search with, are such tables. Costs of layers add up.

    Args:
        entries: the table.
        interpolate: bit-widths between measured ones of a layer cost what lies between: linear
            along each of the two. Nothing is made up beyond the fewest and the most measured bits.

    Raises:
        BudgetError: a cost that is no number, or bits that are none.

    Example:
        >>> measured = {("conv1", 2, 4): 0.3, ("conv1", 4, 4): 0.5}
        >>> CostTable(measured)["conv1", 4, 4]
        0.5
        >>> table = CostTable(measured, interpolate=True)
        >>> table["conv1", 3, 4], ("conv1", 3, 8) in table, len(table)
        (0.4, False, 2)
    """

    def __init__(self, entries: Mapping[Key, float], *, interpolate: bool = False) -> None:
        self.interpolate = interpolate
        self._entries = {
            (layer, _bits(layer, weight), _bits(layer, read)): _number(layer, cost)
            for (layer, weight, read), cost in entries.items()
        }
        self._axes: dict[str, tuple[list[int], list[int]]] = {}
        for layer, weight, read in sorted(self._entries):
            weights, reads = self._axes.setdefault(layer, ([], []))
            weights += [weight] * (weight not in weights)
            reads += [read] * (read not in reads)
            reads.sort()

    @classmethod
    def from_csv(
        cls, path: str | Path, *, cost: str = COST, interpolate: bool = False
    ) -> "CostTable":
        """Read a table with the columns ``layer, weight_bits, activation_bits, cost``.

        Or with ``bits`` in place of the two, of hardware with one type for both: a layer of other
        bits of weights than of activations costs there what the larger of the two does.

        Args:
            path: of the file.
            cost: name of the column to count, such as ``latency_us`` or ``power_mw``.
            interpolate: as of the class.

        Raises:
            BudgetError: no such file, other columns, a line that does not fit, or a layer twice at
                the same bits.
        """
        names, rows = _read(path)
        alike = ALIKE in names and not set(PAIR) <= set(names)
        columns = (LAYER, *((ALIKE, ALIKE) if alike else PAIR), cost)
        if not set(columns) <= set(names):
            near = did_you_mean(cost, names) if cost not in names else ""
            raise BudgetError(
                f"cost table {path}: expected the columns {[LAYER, *PAIR, cost]}, or {ALIKE!r} in "
                f"place of the two in the middle, got {list(names)}{near}"
            )
        entries: dict[Key, float] = {}
        for number, row in enumerate(rows, start=2):
            try:
                layer, weight, read, value = (row[name] for name in columns)
                key, entry = (layer, int(weight), int(read)), float(value)
            except (TypeError, ValueError) as error:
                raise BudgetError(
                    f"cost table {path}, line {number}: expected a name and numbers, got "
                    f"{list(row.values())}"
                ) from error
            if key in entries:
                raise BudgetError(
                    f"cost table {path}, line {number}: expected each layer once at the same bits, "
                    f"got {key} twice: average repeated measurements"
                )
            entries[key] = entry
        made = _OneType if alike else cls
        return made(entries, interpolate=interpolate)

    def __getitem__(self, key: Key) -> float:
        if key in self._entries or not self.interpolate:
            return self._entries[key]
        layer, *bits = key
        if layer not in self._axes:
            raise KeyError(key)
        sides = [_neighbours(axis, one) for axis, one in zip(self._axes[layer], bits, strict=True)]
        corners = list(product(*sides))
        if not corners:
            raise KeyError(key)
        return sum(
            share_w * share_a * self._entries[layer, weight, read]
            for (weight, share_w), (read, share_a) in corners
        )

    def __iter__(self) -> Iterator[Key]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)


class _OneType(CostTable):
    """Rows of as many bits of weights as of activations: the larger of two decides."""

    def __getitem__(self, key: Key) -> float:
        layer, weight, read = key
        most = max(weight, read)
        axis = self._axes.get(layer, ([], []))[0]
        between = _neighbours(axis, most) if self.interpolate else [(most, 1.0)]
        if not between:
            raise KeyError(key)
        return sum(share * self._entries[layer, one, one] for one, share in between)


def require_rows(table: Mapping[Key, Any], keys: Iterable[Key]) -> None:
    """Check that a table has what will be asked of it.

    Args:
        table: a `CostTable`, or any mapping.
        keys: (layer, bits of its weights, bits of what it reads).

    Raises:
        BudgetError: naming the rows that are missing.
    """
    missing = [key for key in dict.fromkeys(keys) if key not in table]
    if not missing:
        return
    rows = ", ".join(f"{layer!r} at ({w}, {a})" for layer, w, a in missing[:NAMED_ROWS])
    rest = f" and {len(missing) - NAMED_ROWS} more" if len(missing) > NAMED_ROWS else ""
    known = sorted({layer for layer, *_ in table})
    near = "".join(did_you_mean(one, known) for one in {missing[0][0]} - set(known))
    raise BudgetError(
        f"cost: expected rows of every layer at its candidates of (weight, activation) bits, got "
        f"none of {rows}{rest}{near}; measure them, leave these bits out of the candidates, or let "
        f"a CostTable interpolate between what it has: layers {known}"
    )


def _read(path: str | Path) -> tuple[Sequence[str], list[dict[str, Any]]]:
    try:
        with open(path, newline="") as file:
            reader = csv.DictReader(file)
            return list(reader.fieldnames or ()), list(reader)
    except (OSError, UnicodeDecodeError) as error:
        raise BudgetError(f"cost table: expected a CSV file, got {path}: {error}") from error


def _neighbours(axis: Sequence[int], bits: int) -> list[tuple[int, float]]:
    """The measured bits around some, each with its share; none beyond the first and the last."""
    if bits in axis:
        return [(bits, 1.0)]
    below = max((one for one in axis if one < bits), default=None)
    above = min((one for one in axis if one > bits), default=None)
    if below is None or above is None:
        return []
    share = (bits - below) / (above - below)
    return [(below, 1 - share), (above, share)]


def _bits(layer: str, bits: Any) -> int:
    if int(bits) != bits or bits < 1:
        raise BudgetError(f"cost table, {layer}: expected whole bits from 1 on, got {bits!r}")
    return int(bits)


def _number(layer: str, cost: float) -> float:
    if not isinstance(cost, (int, float)) or not isfinite(cost):
        raise BudgetError(f"cost table, {layer}: expected a number, got {cost!r}")
    return cost
