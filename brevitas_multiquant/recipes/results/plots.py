"""The plots that a run leaves, and one of several runs."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

from brevitas_multiquant.recipes.results.report import read_summary

matplotlib.use("Agg")

from matplotlib import pyplot as plt
from matplotlib.ticker import MaxNLocator

# Wong's palette: eight colours that colour-blind readers tell apart.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#000000")

# Points of accuracy that the axis spans at least, so that noise does not look like a result.
LEAST_SPAN = 4.0


def _new_axes(columns: int) -> tuple[plt.Figure, list[plt.Axes]]:
    size = (5.2 * columns, 3.8)
    figure, grid = plt.subplots(1, columns, figsize=size, layout="constrained", squeeze=False)
    axes = list(grid[0])
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.25)
    return figure, axes


def _save(figure: plt.Figure, path: Path) -> Path:
    figure.savefig(path, dpi=150)
    plt.close(figure)
    return path


def plot_learning_curves(folder: Path, bits: tuple[int, ...], title: str) -> Path:
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
    return _save(figure, folder / "learning_curves.png")


def plot_accuracy_cost(
    folder: Path, accuracy: Mapping[int, float], costs: Mapping[int, Any], title: str
) -> Path:
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
    return _save(figure, folder / "accuracy_cost.png")


def plot_runs(path: Path, runs: Mapping[str, Sequence[tuple[int, float, int]]]) -> Path:
    """Top-1 against BitOPs of several runs.

    Args:
        path: of the figure.
        runs: name -> (BitOPs, top-1 in percent, bits) at each of its bit-widths.
    """
    figure, (axis,) = _new_axes(1)
    for index, (name, points) in enumerate(runs.items()):
        operations, accuracy = ([point[i] for point in points] for i in (0, 1))
        giga = [value / 1e9 for value in operations]
        axis.plot(giga, accuracy, "o-", color=COLOURS[index % len(COLOURS)], label=name)
        for x, (_, top1, bits) in zip(giga, points, strict=True):
            axis.annotate(str(bits), (x, top1), (0, 6), textcoords="offset points", ha="center")
    axis.set(xscale="log", xlabel="GBitOPs an image", ylabel="top-1 (%)")
    axis.legend(frameon=False, loc="lower right")
    return _save(figure, path)
