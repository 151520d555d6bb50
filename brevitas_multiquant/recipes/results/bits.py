"""What a search leaves for people: bits over epochs, bits of each layer, accuracy against cost."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot as plt
from matplotlib.ticker import MaxNLocator

from brevitas_multiquant.allocation.allocation import UNITS, Allocation
from brevitas_multiquant.allocation.search_task import Settled
from brevitas_multiquant.allocation.sites import KINDS
from brevitas_multiquant.recipes.results.plots import COLOURS
from brevitas_multiquant.recipes.results.report import write_rows

BITS = "bits/"
"""What the names of bit-widths start with, in a row of results."""

RATIO = "cost_over_budget"
BITS_FILE = "bits.csv"
PARETO_FILE = "pareto.csv"
ASSIGNMENT_FILE = "assignment.json"
SEARCH_FILE = "search.json"
STYLES = ("-", "--", ":", "-.")
"""A colour and a style tell apart more lines than there are colours."""


def write_bits(folder: Path, rows: Sequence[Mapping[str, float]]) -> None:
    """``bits.csv``: epoch, cost over budget, and every bit-width, as it was after each epoch."""
    if not rows:
        return
    named = {name: name.removeprefix(BITS) for name in rows[0] if name.startswith(BITS)}
    columns = ["epoch", RATIO, *named.values()]
    renamed = [{named.get(name, name): value for name, value in row.items()} for row in rows]
    write_rows(folder / BITS_FILE, columns, renamed)


def plot_bits_over_epochs(
    folder: Path, rows: Sequence[Mapping[str, float]], search_epochs: int
) -> None:
    """``bits_over_epochs.png``: weights, activations, and cost over budget."""
    epochs = [row["epoch"] + 1 for row in rows]
    figure, axes = plt.subplots(1, 3, figsize=(16, 5.5), layout="constrained")
    for axis, kind in zip(axes, KINDS, strict=False):
        names = [name for name in rows[0] if name.startswith(BITS) and name.endswith(kind)]
        for index, name in enumerate(names):
            axis.plot(
                epochs,
                [row[name] for row in rows],
                STYLES[index // len(COLOURS) % len(STYLES)],
                color=COLOURS[index % len(COLOURS)],
                label=name.removeprefix(BITS).removesuffix(f" {kind}"),
                linewidth=1.3,
            )
        axis.set(xlabel="epoch", ylabel="bits", title=f"{kind}s")
        columns = 1 + (len(names) - 1) // 12
        axis.legend(frameon=False, fontsize=7, ncols=columns, loc="best")
    axes[-1].plot(epochs, [row[RATIO] for row in rows], color="#444444")
    axes[-1].axhline(1, color="#BBBBBB", linewidth=1)
    axes[-1].set(xlabel="epoch", ylabel="cost / budget", title="cost")
    for axis in axes:
        axis.axvline(search_epochs + 0.5, color="#BBBBBB", linestyle=":", linewidth=1)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.25)
    figure.savefig(folder / "bits_over_epochs.png", dpi=150)
    plt.close(figure)


def plot_bits_of_layers(folder: Path, settled: Settled, title: str) -> None:
    """``bits_of_layers.png``: bars of weight and activation bits, and each layer's share."""
    allocation = settled.allocation
    rows = [row for row in allocation.layers if row.weight is not None]
    names, places = [row.layer for row in rows], range(len(rows))
    figure, (bars, shares) = plt.subplots(
        2,
        1,
        figsize=(max(6, 0.42 * len(rows) + 2), 6.5),
        layout="constrained",
        sharex=True,
        height_ratios=(2, 1),
    )
    weights = [_mean(settled.channels.get(row.layer, (row.weight or 0,))) for row in rows]
    label = "weights, mean of channels" if settled.channels else "weights"
    bars.bar([x - 0.2 for x in places], weights, 0.4, color=COLOURS[0], label=label)
    reads = [row.activation for row in rows]
    bars.bar([x + 0.2 for x in places], reads, 0.4, color=COLOURS[1], label="activations")
    if allocation.uniform is not None:
        bits = allocation.uniform.bits
        bars.axhline(bits, color="#444444", linestyle="--", linewidth=1, label=f"uniform {bits}")
    bars.set(ylabel="bits", title=title)
    bars.legend(frameon=False, loc="upper left", ncols=3, fontsize=9)
    bars.margins(y=0.18)
    shares.bar(places, [100 * row.share for row in rows], 0.6, color="#999999")
    shares.set(ylabel="% of the cost")
    shares.set_xticks(places, names, rotation=90, fontsize=7)
    for axis in (bars, shares):
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.25, axis="y")
    figure.savefig(folder / "bits_of_layers.png", dpi=150)
    plt.close(figure)


def _mean(bits: Sequence[int]) -> float:
    return sum(bits) / len(bits)


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


def plot_pareto(folder: Path, rows: Sequence[Mapping[str, Any]], title: str) -> None:
    """``pareto.png``: top-1 against cost; searches that another one beats are hollow."""
    scale, unit = UNITS.get(rows[0]["unit"], (1.0, rows[0]["unit"]))
    figure, axis = plt.subplots(figsize=(6, 4), layout="constrained")
    ordered = sorted(rows, key=lambda row: row["cost"])
    best: list[Mapping[str, Any]] = []
    for row in ordered:
        if not best or row["top1"] > best[-1]["top1"]:
            best.append(row)
    axis.plot(
        [r["cost"] / scale for r in best], [r["top1"] for r in best], color="#BBBBBB", zorder=1
    )
    for row in ordered:
        fill = COLOURS[0] if row in best else "white"
        axis.scatter(row["cost"] / scale, row["top1"], color=fill, edgecolors=COLOURS[0], zorder=2)
        axis.annotate(
            row["search"].replace("_", " "),
            (row["cost"] / scale, row["top1"]),
            (0, 8),
            textcoords="offset points",
            ha="center",
            fontsize=8,
        )
    axis.set(xlabel=unit, ylabel="top-1 (%)", title=title)
    axis.margins(x=0.15, y=0.2)
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(alpha=0.25)
    figure.savefig(folder / "pareto.png", dpi=150)
    plt.close(figure)
