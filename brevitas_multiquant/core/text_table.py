"""Tables that programs print."""

from collections.abc import Iterable, Sequence

from tabulate import tabulate

_SIDES = {"<": "left", ">": "right"}


def text_table(rows: Sequence[Iterable[object]], align: str = "<>") -> str:
    """Rows of cells as text, columns two spaces apart.

    Args:
        rows: the header first; cells are written by `str`.
        align: ``<`` (left) or ``>`` (right) for each column; those that follow are like the last.

    Example:
        >>> print(text_table([("site", "bits"), ("layer1.0.conv1", 4)]))
        site            bits
        layer1.0.conv1     4
    """
    cells = [[str(cell) for cell in row] for row in rows]
    sides = [_SIDES[mark] for mark in align.ljust(len(cells[0]), align[-1])]
    table = tabulate(cells, tablefmt="plain", colalign=sides, disable_numparse=True)
    return "\n".join(line.rstrip() for line in table.splitlines())
