"""What a run leaves for people: args.yaml, summary.csv, two plots, a table."""

import argparse
import csv
import os
import platform
import re
import subprocess
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import matplotlib
import torch
import yaml

from recipes.yaml_options import ENVIRONMENT

matplotlib.use("Agg")

from matplotlib import pyplot as plt
from matplotlib.ticker import MaxNLocator

PACKAGES = ("torch", "torchvision", "timm", "accelerate", "brevitas")
# Wong's palette: eight colours that colour-blind readers tell apart.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#000000")

SUMMARY_FILE = "summary.csv"

# Points of accuracy that the axis spans at least, so that noise does not look like a result.
LEAST_SPAN = 4.0


def git_commit() -> str | None:
    """The commit of this checkout, with ``-dirty`` after local changes; None outside of git."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(
            command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def hardware() -> str:
    """The machine in one line."""
    names = Path("/proc/cpuinfo")
    lines = names.read_text().splitlines() if names.is_file() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    cpu = models[0] if models else platform.processor() or platform.machine()
    parts = [cpu, f"{torch.get_num_threads()} torch threads", platform.system()]
    if torch.cuda.is_available():
        parts.insert(0, f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}")
    return ", ".join(parts)


def save_args(args: argparse.Namespace, folder: Path) -> None:
    """Write ``args.yaml``: all options, so that it serves as ``-c``, and the environment."""
    options: dict[str, Any] = dict(sorted(vars(args).items()))
    options["model_kwargs"] = dict(args.model_kwargs)
    options[ENVIRONMENT] = {
        "versions": {name: version(name) for name in PACKAGES},
        "python": platform.python_version(),
        "commit": git_commit(),
        "hardware": hardware(),
    }
    text = yaml.safe_dump(options, sort_keys=False)
    aside = folder / "args.yaml.partial"
    aside.write_text(text, encoding="utf-8")
    os.replace(aside, folder / "args.yaml")


def top1_columns(accuracy: Mapping[int, float]) -> dict[str, float]:
    """Bit-width -> percent, under the names that ``summary.csv`` has: ``top1_2b``."""
    return {f"top1_{bit}b": value for bit, value in accuracy.items()}


def summary_row(
    epoch: int, loss: float, seconds: float, accuracy: Mapping[int, float], lr: float
) -> dict[str, float]:
    """An epoch's results, under the names that ``summary.csv`` has, which are timm's."""
    return {
        "epoch": epoch,
        "train_loss": loss,
        "train_seconds": round(seconds, 2),
        **{f"eval_{name}": value for name, value in top1_columns(accuracy).items()},
        "lr": lr,
    }


def accuracy_of(row: Mapping[str, float]) -> dict[int, float]:
    """Bit-width -> top-1 in percent of a row of `summary_row`."""
    found = ((re.fullmatch(r"eval_top1_(\d+)b", name), value) for name, value in row.items())
    return {int(match[1]): value for match, value in found if match}


def write_summary(folder: Path, rows: Sequence[Mapping[str, float]]) -> None:
    """Write ``summary.csv``, a row an epoch, at once."""
    if not rows:
        return
    aside = folder / f"{SUMMARY_FILE}.partial"
    with open(aside, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    os.replace(aside, folder / SUMMARY_FILE)


def read_summary(folder: Path) -> dict[str, list[float]]:
    """The columns of ``summary.csv``."""
    with open(folder / SUMMARY_FILE, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return {name: [float(row[name]) for row in rows] for name in rows[0]}


def _new_axes(columns: int) -> tuple[plt.Figure, list[plt.Axes]]:
    figure, axes = plt.subplots(1, columns, figsize=(5.2 * columns, 3.8), layout="constrained")
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.25)
    return figure, list(axes)


def plot_learning_curves(folder: Path, bits: tuple[int, ...], title: str) -> None:
    """``learning_curves.png``: training loss and validation top-1 over epochs."""
    columns = read_summary(folder)
    epochs = [epoch + 1 for epoch in columns["epoch"]]
    marker = "o" if len(epochs) <= 30 else None
    figure, (losses, accuracies) = _new_axes(2)
    losses.plot(epochs, columns["train_loss"], color="#444444", marker=marker, markersize=3)
    for axis in (losses, accuracies):
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    losses.set(xlabel="epoch", ylabel="training loss", title=title)
    for bit, colour in zip(bits, COLOURS, strict=False):
        series = columns[f"eval_top1_{bit}b"]
        label = f"{bit} bits: {series[-1]:.1f} %"
        accuracies.plot(epochs, series, color=colour, label=label, marker=marker, markersize=3)
    accuracies.set(xlabel="epoch", ylabel="top-1 (%)", title="validation")
    accuracies.legend(frameon=False, loc="lower right")
    figure.savefig(folder / "learning_curves.png", dpi=150)
    plt.close(figure)


def plot_accuracy_cost(
    folder: Path, accuracy: Mapping[int, float], costs: Mapping[int, Any], title: str
) -> None:
    """``accuracy_cost.png``: top-1 against bit-width and against BitOPs."""
    bits = list(accuracy)
    values = list(accuracy.values())
    operations = [costs[bit].bitops / 1e9 for bit in bits]
    figure, (by_bits, by_cost) = _new_axes(2)
    by_bits.plot(bits, values, color="#BBBBBB", zorder=1)
    by_cost.plot(operations, values, color="#BBBBBB", zorder=1)
    for bit, value, giga, colour in zip(bits, values, operations, COLOURS, strict=False):
        by_bits.scatter(bit, value, color=colour, zorder=2)
        by_cost.scatter(giga, value, color=colour, zorder=2)
        for axis, x in ((by_bits, bit), (by_cost, giga)):
            label = f"{value:.1f} %" if axis is by_bits else f"{bit} bits"
            axis.annotate(
                label,
                (x, value),
                (0, 9),
                textcoords="offset points",
                ha="center",
                bbox={"facecolor": "white", "edgecolor": "none", "pad": 1},
            )
    by_bits.set(xlabel="bit-width", ylabel="top-1 (%)", title=title, xticks=bits)
    by_cost.set(xlabel="GBitOPs an image", ylabel="top-1 (%)", title="accuracy against cost")
    middle, reach = (
        (max(values) + min(values)) / 2,
        0.7 * max(max(values) - min(values), LEAST_SPAN),
    )
    for axis in (by_bits, by_cost):
        axis.margins(x=0.12)
        axis.set_ylim(middle - reach, min(middle + reach, 100.5))
    figure.savefig(folder / "accuracy_cost.png", dpi=150)
    plt.close(figure)


def result_table(accuracy: Mapping[int, float], costs: Mapping[int, Any] | None = None) -> str:
    """Top-1 a bit-width, beside its cost where that is known, as aligned text."""
    header = ["bits", "top-1 %"] + (cost_header() if costs else [])
    rows = [[str(bit), f"{value:.2f}"] for bit, value in accuracy.items()]
    if costs:
        for row, bit in zip(rows, accuracy, strict=True):
            row += cost_cells(costs[bit])
    return aligned([header, *rows])


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Rows of text cells as columns."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True))
        for row in rows
    )


def cost_header() -> list[str]:
    """The columns of `cost_cells`."""
    return ["branches", "MMACs", "GBitOPs", "kB"]


def cost_cells(cost: Any) -> list[str]:
    """What one bit-width costs."""
    branches = cost.branches
    count = branches if isinstance(branches, int | float) else len(branches)
    return [
        str(count),
        f"{cost.macs / 1e6:.1f}",
        f"{cost.bitops / 1e9:.3f}",
        f"{cost.bytes / 1e3:.1f}",
    ]
