"""``report.html`` of a run: what it reached, how it was made; one file that needs no other."""

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined
from torch import Tensor

from brevitas_multiquant.allocation.allocation import UNITS
from brevitas_multiquant.recipes.errors import MissingFileError
from brevitas_multiquant.recipes.options.search import epochs_of_search
from brevitas_multiquant.recipes.options.yaml_files import ENVIRONMENT
from brevitas_multiquant.recipes.results import plots
from brevitas_multiquant.recipes.results.bits import BITS_FILE, PARETO_FILE, SEARCH_FILE
from brevitas_multiquant.recipes.results.checkpoints import PARTIAL
from brevitas_multiquant.recipes.results.confusion import Mistake, mistakes, read_confusion
from brevitas_multiquant.recipes.results.layers import Running, in_bitops
from brevitas_multiquant.recipes.results.report import (
    SUMMARY_FILE,
    last_accuracy,
    read_args,
    read_columns,
    read_rows,
    read_summary,
    result_rows,
)
from brevitas_multiquant.recipes.results.run_folder import PAGE_FILE

MOST_CELLS = 20
"""Classes of a confusion matrix with numbers in it; one of more is a figure."""
MOST_MISTAKES = 3


class Confusion(NamedTuple):
    """The confusion at a bit-width, as the page shows it.

    Args:
        bits: the bit-width.
        top1: in percent.
        counts: (C, C), row: the label.
        panel: a figure of it, where it has too many cells for numbers.
        mistakes: those that are made most often.
    """

    bits: int
    top1: float
    counts: list[list[int]]
    panel: plots.Panel | None
    mistakes: list[Mistake]


def write_page(folder: Path, running: Mapping[int, Running]) -> Path:
    """Write ``report.html`` from the files of a run.

    Args:
        folder: of the run.
        running: bit-width -> what runs; empty for a float network.

    Returns:
        The file.

    Raises:
        MissingFileError: no epoch is done, or it is no folder of a run.
    """
    options = read_args(folder)
    if not (folder / SUMMARY_FILE).is_file():
        raise MissingFileError(
            f"{folder}: expected a run with an epoch done, found no {SUMMARY_FILE} in it"
        )
    made_on = options.pop(ENVIRONMENT, {})
    columns, accuracy = read_summary(folder), last_accuracy(folder)
    found = _found(folder)
    names = made_on.get("preprocessing", {}).get("class_names", ())
    confusion = list(_confusions(read_confusion(folder, len(names))))
    if confusion and not names:
        names = [str(label) for label in range(len(confusion[0].counts))]
    page = {
        "title": _title(options),
        "subtitle": f"{folder.name}: {len(columns['epoch'])} of {options['epochs']} epochs",
        "result": result_rows(accuracy, {bits: at.cost for bits, at in running.items()}),
        "figures": [
            ("Accuracy against cost", against_cost(accuracy, running)),
            ("Training", plots.curves(columns, list(accuracy))),
            ("Bits that were learned", learned_bits(folder, options)),
        ],
        "running": running,
        "most_bits": most_bits(running),
        "found": found,
        "confusion": confusion,
        "names": names,
        "tables": [
            ("Options", list(_flat(options))),
            ("Environment", list(_flat(made_on))),
        ],
    }
    return _write(folder, "run.html", page)


def against_cost(
    accuracy: Mapping[int, float], running: Mapping[int, Running]
) -> list[plots.Panel]:
    """Panels, where there is more than one bit-width to compare."""
    return plots.accuracy_against_cost(accuracy, running) if len(running) > 1 else []


def learned_bits(folder: Path, options: Mapping[str, Any]) -> list[plots.Panel]:
    """Panels of a search."""
    if not (folder / BITS_FILE).is_file():
        return []
    searched = epochs_of_search(options["search_share"], options["epochs"])
    return plots.bits_over_epochs(read_columns(folder / BITS_FILE), searched)


def panels_of(folder: Path, running: Mapping[int, Running]) -> list[plots.Panel]:
    """Every figure of a run, in the order of its page.

    Args:
        folder: of the run.
        running: as of `write_page`.
    """
    columns, accuracy = read_summary(folder), last_accuracy(folder)
    options = read_args(folder)
    panels = [*against_cost(accuracy, running), *plots.curves(columns, list(accuracy))]
    panels += learned_bits(folder, options)
    return panels + [plots.confusion(c, bits) for bits, c in read_confusion(folder).items()]


def write_pareto_page(folder: Path) -> Path:
    """Write ``report.html`` of several searches, from ``pareto.csv``; it leads to that of each."""
    rows = read_rows(folder / PARETO_FILE)
    title = _title(read_args(folder / rows[0]["search"]))
    numbers = [{**row, "cost": float(row["cost"]), "top1": float(row["top1"])} for row in rows]
    scale, unit = UNITS.get(rows[0]["unit"], (1.0, rows[0]["unit"]))
    page = {
        "title": title,
        "rows": numbers,
        "scale": scale,
        "unit": unit,
        "panel": plots.pareto(numbers, scale, unit),
        "page": PAGE_FILE,
    }
    return _write(folder, "pareto.html", page)


def templates() -> Environment:
    """Of pages; text is escaped, and nothing is missing silently."""
    found = Environment(
        loader=PackageLoader("brevitas_multiquant.recipes.results"),
        autoescape=True,
        undefined=StrictUndefined,
    )
    found.globals["in_bitops"] = in_bitops
    found.globals["share"] = lambda part, whole: f"{100 * part / (whole or 1):.1f}%"
    return found


def _write(folder: Path, template: str, page: Mapping[str, Any]) -> Path:
    made = templates()
    text = made.get_template(template).render(style=style(), **page)
    path = folder / PAGE_FILE
    aside = folder / f"{PAGE_FILE}{PARTIAL}"
    aside.write_text(text, encoding="utf-8")
    os.replace(aside, path)
    return path


def style() -> str:
    """CSS of everything within ``class="page"``."""
    return (Path(__file__).parent / "templates" / "style.css").read_text(encoding="utf-8")


def _title(options: Mapping[str, Any]) -> str:
    data = options["dataset"] or Path(options["data_dir"] or "images").name
    return f"{options['model']} on {data}"


def most_bits(running: Mapping[int, Running]) -> float:
    """The longest bar of bits."""
    rows = [row for at in running.values() for row in at.layers if row.weight is not None]
    return max((max(r.branches * (r.weight or 0), r.activation or 0) for r in rows), default=1)


def _confusions(counts: Mapping[int, Tensor]) -> Iterator[Confusion]:
    for bits, of in counts.items():
        top1 = 100 * int(of.trace()) / int(of.sum())
        panel = plots.confusion(of, bits) if len(of) > MOST_CELLS else None
        yield Confusion(bits, top1, of.tolist(), panel, list(mistakes(of, MOST_MISTAKES)))


def _found(folder: Path) -> str:
    """What a search says of its bits; empty where there was none."""
    path = folder / SEARCH_FILE
    if not path.is_file():
        return ""
    return str(json.loads(path.read_text(encoding="utf-8"))["headline"])


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Names and values, those within others by both names."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name} ")
        else:
            text = ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
            yield f"{prefix}{name}".replace("_", " "), text
