"""Costs that somebody measured: of each layer, at pairs of bit-widths."""

import csv
from collections.abc import Iterator, Mapping
from pathlib import Path

from brevitas_multiquant.errors import BudgetError

COLUMNS = ("layer", "weight_bits", "activation_bits", "cost")


class CostTable(Mapping[tuple[str, int, int], float]):
    """(layer, bits of its weights, bits of what it reads) -> cost; hardware in the loop.

    Latencies, energies or areas from a board or a simulator, as OHQ (arXiv:2309.01945) and AMED
    (arXiv:2205.15437) search with, are such tables. Costs of layers add up.

    Args:
        entries: the table.

    Raises:
        BudgetError: a cost that is no number.

    Example:
        >>> table = CostTable({("conv1", 2, 4): 0.3, ("conv1", 4, 4): 0.5})
        >>> table["conv1", 4, 4]
        0.5
    """

    def __init__(self, entries: Mapping[tuple[str, int, int], float]) -> None:
        self._entries = {
            (layer, int(weight), int(read)): _number(layer, cost)
            for (layer, weight, read), cost in entries.items()
        }

    @classmethod
    def from_csv(cls, path: str | Path) -> "CostTable":
        """Read a table with the columns ``layer, weight_bits, activation_bits, cost``.

        Args:
            path: of the file.

        Raises:
            BudgetError: no such file, other columns, or a line that does not fit.
        """
        try:
            with open(path, newline="") as file:
                reader = csv.DictReader(file)
                rows = list(reader)
        except OSError as error:
            raise BudgetError(f"cost table: expected a CSV file, got {path}: {error}") from error
        if not set(COLUMNS) <= set(reader.fieldnames or ()):
            raise BudgetError(
                f"cost table {path}: expected the columns {list(COLUMNS)}, got {reader.fieldnames}"
            )
        entries = {}
        for number, row in enumerate(rows, start=2):
            try:
                layer, weight, read, cost = (row[name] for name in COLUMNS)
                entries[layer, int(weight), int(read)] = float(cost)
            except (TypeError, ValueError) as error:
                raise BudgetError(
                    f"cost table {path}, line {number}: expected a name and three numbers, got "
                    f"{list(row.values())}"
                ) from error
        return cls(entries)

    def __getitem__(self, key: tuple[str, int, int]) -> float:
        return self._entries[key]

    def __iter__(self) -> Iterator[tuple[str, int, int]]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)


def _number(layer: str, cost: float) -> float:
    if not isinstance(cost, (int, float)) or cost != cost:
        raise BudgetError(f"cost table, {layer}: expected a number, got {cost!r}")
    return cost
