"""What a search leaves for people: bits over epochs, bits of each layer, accuracy against cost."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from brevitas_multiquant.allocation.allocation import Allocation
from brevitas_multiquant.recipes.results.report import counted, write_rows

BITS = "bits/"
"""What the names of bit-widths start with, in a row of results."""

RATIO = "cost_over_budget"
BITS_FILE = "bits.csv"
PARETO_FILE = "pareto.csv"
ASSIGNMENT_FILE = "assignment.json"
SEARCH_FILE = "search.json"


def write_bits(folder: Path, rows: Sequence[Mapping[str, float]]) -> None:
    """``bits.csv``: epoch, cost over budget, and every bit-width, as it was after each epoch."""
    if not rows:
        return
    named = {name: name.removeprefix(BITS) for name in rows[0] if name.startswith(BITS)}
    columns = ["epoch", RATIO, *named.values()]
    renamed = [
        {named.get(name, name): value for name, value in row.items()} for row in counted(rows)
    ]
    write_rows(folder / BITS_FILE, columns, renamed)


def pareto_row(name: str, allocation: Allocation, top1: float) -> dict[str, Any]:
    """A search among others: its budget, its cost, and what it reached."""
    return {
        "search": name,
        "unit": allocation.unit,
        "budget": allocation.budget,
        "cost": allocation.cost,
        "dsp": allocation.dsp,
        "top1": top1,
    }


def write_pareto(folder: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """``pareto.csv``, a row for each search."""
    write_rows(folder / PARETO_FILE, list(rows[0]), rows)
