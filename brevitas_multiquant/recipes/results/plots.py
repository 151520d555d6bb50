"""The figures of runs, each one panel: SVG for a page, light or dark, or a file of any kind."""

import io
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from brevitas_multiquant.recipes.results.layers import Running, in_bitops

# Wong's palette: eight colours that colour-blind readers tell apart.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#000000")
INK, GRID, FAINT, SURFACE = "#222221", "#E1E1E0", "#A1A1A0", "#FFFFFE"
"""Of text and axes, of the grid, of lines that guide the eye, and of what lies behind."""

THEMED = {
    **{colour: f"series-{index}" for index, colour in enumerate(COLOURS)},
    **{INK: "ink", GRID: "grid", FAINT: "faint", SURFACE: "surface"},
}
"""Colour -> the variable of a page's style that stands for it: a page may be light or dark."""

STYLE: Any = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "axes.grid": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlecolor": INK,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "savefig.transparent": True,
}

# Points of accuracy that the axis spans at least, so that noise does not look like a result.
LEAST_SPAN = 4.0
MARKED_EPOCHS = 30
"""Of so many at most, each has a mark."""

WIDTH = 4.6
MARGINS = (0.68, 0.5, 0.1, 0.32)
"""In inches: left, bottom, right and top of a panel."""


@dataclass(frozen=True)
class Panel:
    """A figure.

    Args:
        name: of its file.
        title: what it shows.
        draw: draws it onto axes.
        height: in inches; the width is `WIDTH`.
        fitted: margins are measured, for long labels or a colour bar; it takes twice the time.
    """

    name: str
    title: str
    draw: Callable[[Axes], object]
    height: float = 3.2
    fitted: bool = False

    def figure(self) -> plt.Figure:
        """It alone; to be closed."""
        size = (WIDTH, self.height)
        figure, axes = plt.subplots(figsize=size, layout="constrained" if self.fitted else None)
        if not self.fitted:
            left, bottom, right, top = MARGINS
            figure.subplots_adjust(
                left=left / WIDTH,
                bottom=bottom / self.height,
                right=1 - right / WIDTH,
                top=1 - top / self.height,
            )
        self.draw(axes)
        axes.set_title(self.title, loc="left")
        return figure

    def svg(self) -> str:
        """For a page that sets the variables of `THEMED`; it is as wide as there is room."""
        written = io.StringIO()
        with matplotlib.rc_context({**STYLE, "svg.hashsalt": self.name}):
            figure = self.figure()
            figure.savefig(written, format="svg", metadata={"Date": None, "Creator": None})
            plt.close(figure)
        return _themed(written.getvalue(), self.title)

    def save(self, path: Path) -> Path:
        """Write it as the kind of file that its name says: PNG, SVG, PDF.

        Raises:
            ValueError: none that matplotlib knows.
        """
        with matplotlib.rc_context({**STYLE, "savefig.transparent": False}):
            figure = self.figure()
            figure.savefig(path, dpi=200)
            plt.close(figure)
        return path


def _themed(text: str, title: str) -> str:
    """An ``svg`` element without what only files need, its colours the page's to choose."""
    text = re.sub(r"\s*<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = re.sub(r' id="[\w.]+_\d+"', "", text)  # the same in every figure of a page
    text = re.sub(r"font-family: [^;\"]*", "font-family: system-ui, sans-serif", text)
    text = re.sub(r"<svg ([^>]*?)width=\"[^\"]*\"", r"<svg \1", text)
    text = re.sub(r"<svg ([^>]*?)height=\"[^\"]*\"", r"<svg \1", text)
    for colour, name in THEMED.items():
        text = re.sub(re.escape(colour), f"var(--{name}, {colour})", text, flags=re.IGNORECASE)
    return text.replace("<svg ", f'<svg role="img" aria-label="{title}" ', 1)


def curves(summary: Mapping[str, Sequence[float]], accuracy: Sequence[int]) -> list[Panel]:
    """Training loss and validation top-1 over epochs.

    Args:
        summary: the columns of ``summary.csv``.
        accuracy: the bit-widths in it.
    """
    epochs = range(1, len(summary["epoch"]) + 1)
    look: dict[str, Any] = {"marker": "o" if len(epochs) <= MARKED_EPOCHS else None}
    look |= {"markersize": 3, "linewidth": 1.5}

    def over_epochs(axes: Axes, ylabel: str) -> None:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set(xlabel="epoch", ylabel=ylabel)

    def losses(axes: Axes) -> None:
        axes.plot(epochs, summary["train_loss"], color=COLOURS[0], **look)
        over_epochs(axes, "training loss")

    def accuracies(axes: Axes) -> None:
        for bits, colour in zip(accuracy, COLOURS, strict=False):
            series = summary[f"eval_top1_{bits}b"]
            axes.plot(epochs, series, color=colour, label=f"{bits} bits", **look)
        axes.legend(loc="lower right")
        over_epochs(axes, "top-1 (%)")

    return [
        Panel("training_loss", "Training loss", losses),
        Panel("validation_top1", "Validation accuracy", accuracies),
    ]


def accuracy_against_cost(
    accuracy: Mapping[int, float], running: Mapping[int, Running]
) -> list[Panel]:
    """Top-1 against bit-width and against bit operations."""
    bits, values = list(accuracy), list(accuracy.values())
    scale, unit = in_bitops(max(running[bit].cost.bitops for bit in bits))
    operations = [running[bit].cost.bitops / scale for bit in bits]

    def draw(axes: Axes, places: Sequence[float], labels: Sequence[str], xlabel: str) -> None:
        axes.plot(places, values, color=FAINT, zorder=1)
        middle, span = (max(values) + min(values)) / 2, max(values) - min(values)
        reach = 0.75 * max(span, LEAST_SPAN)
        for place, value, label, colour in zip(places, values, labels, COLOURS, strict=False):
            axes.scatter(place, value, color=colour, zorder=2)
            _label(axes, label, (place, value))
        axes.margins(x=0.14)
        axes.set_ylim(middle - reach, min(middle + reach, 101))
        axes.set(xlabel=xlabel, ylabel="top-1 (%)")

    def by_bits(axes: Axes) -> None:
        draw(axes, bits, [f"{value:.1f}" for value in values], "bit-width")
        axes.set_xticks(bits)

    def by_cost(axes: Axes) -> None:
        draw(axes, operations, [f"{bit} bits" for bit in bits], f"{unit} an image")

    return [
        Panel("accuracy_bits", "Accuracy against bit-width", by_bits),
        Panel("accuracy_cost", "Accuracy against cost", by_cost),
    ]


def _label(axes: Axes, text: str, place: tuple[float, float]) -> None:
    """Above a point, on a ground of its own."""
    ground = {"facecolor": SURFACE, "edgecolor": "none", "pad": 0.6, "alpha": 0.8}
    axes.annotate(text, place, (0, 7), textcoords="offset points", ha="center", bbox=ground)


def bits_over_epochs(columns: Mapping[str, Sequence[float]], search_epochs: int) -> list[Panel]:
    """Bits of weights and of activations, a row for each site; and cost over budget.

    Args:
        columns: of ``bits.csv``.
        search_epochs: after which bits are whole.
    """
    epochs = range(1, len(columns["epoch"]) + 1)
    panels = []
    for kind in ("weight", "activation"):
        suffix = f" {kind}"
        sites = {n.removesuffix(suffix): v for n, v in columns.items() if n.endswith(suffix)}
        if sites:
            height = 1.4 + 0.17 * len(sites)
            draw = _heat_of(sites, epochs, search_epochs)
            panels.append(Panel(f"bits_of_{kind}s", f"Bits of {kind}s", draw, height, True))

    def ratio(axes: Axes) -> None:
        axes.plot(epochs, columns["cost_over_budget"], color=COLOURS[0])
        axes.axhline(1, color=FAINT)
        axes.axvline(search_epochs + 0.5, color=FAINT, linestyle=":")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set(xlabel="epoch", ylabel="cost / budget")

    return [*panels, Panel("cost_over_budget", "Cost over budget", ratio)]


def _heat_of(
    sites: Mapping[str, Sequence[float]], epochs: Sequence[float], search_epochs: int
) -> Callable[[Axes], None]:
    def draw(axes: Axes) -> None:
        extent = (epochs[0] - 0.5, epochs[-1] + 0.5, len(sites) - 0.5, -0.5)
        rows = list(sites.values())
        image = axes.imshow(rows, aspect="auto", extent=extent, interpolation="nearest")
        axes.set_yticks(range(len(sites)), list(sites), fontsize=7)
        axes.axvline(search_epochs + 0.5, color=SURFACE, linewidth=1)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(False)
        axes.set(xlabel="epoch")
        bar = axes.figure.colorbar(image, ax=axes, pad=0.02, label="bits")
        bar.outline.set_visible(False)  # type: ignore[operator]

    return draw


def confusion(counts: Tensor, bits: int) -> Panel:
    """Of many classes: numbers of images, row: the class, column: what it is taken for."""

    def draw(axes: Axes) -> None:
        image = axes.imshow(counts.clamp(min=0.5), norm=LogNorm(), interpolation="nearest")
        axes.grid(False)
        axes.set(xlabel="taken for class", ylabel="class")
        axes.figure.colorbar(image, ax=axes, pad=0.02, label="images")

    return Panel(f"confusion_{bits}b", f"{bits} bits", draw, 3.9, True)


def runs(points: Mapping[str, Sequence[tuple[int, float, int]]]) -> Panel:
    """Top-1 against bit operations of several runs.

    Args:
        points: name of a run -> (bit operations, top-1 in percent, bits) of its bit-widths.
    """

    def draw(axes: Axes) -> None:
        for index, (name, each) in enumerate(points.items()):
            giga = [operations / 1e9 for operations, _, _ in each]
            colour = COLOURS[index % len(COLOURS)]
            axes.plot(giga, [top1 for _, top1, _ in each], "o-", color=colour, label=name)
            for x, (_, top1, bits) in zip(giga, each, strict=True):
                _label(axes, str(bits), (x, top1))
        axes.set(xscale="log", xlabel="GBitOPs an image", ylabel="top-1 (%)")
        axes.legend(loc="lower right")

    return Panel("runs", "Accuracy against cost", draw, 3.8)


def pareto(rows: Sequence[Mapping[str, Any]], scale: float, unit: str) -> Panel:
    """Top-1 against cost of several searches; those that another one beats are hollow.

    Args:
        rows: of ``pareto.csv``.
        scale: what a cost is divided by.
        unit: of what it is then.
    """
    ordered = sorted(rows, key=lambda row: row["cost"])
    best: list[Mapping[str, Any]] = []
    for row in ordered:
        if not best or row["top1"] > best[-1]["top1"]:
            best.append(row)

    def draw(axes: Axes) -> None:
        axes.plot([r["cost"] / scale for r in best], [r["top1"] for r in best], color=FAINT)
        for row in ordered:
            place = (row["cost"] / scale, row["top1"])
            fill = COLOURS[0] if row in best else SURFACE
            axes.scatter(*place, color=fill, edgecolors=COLOURS[0], zorder=2)
            _label(axes, row["search"].replace("_", " "), place)
        axes.margins(x=0.2, y=0.2)
        axes.set(xlabel=unit, ylabel="top-1 (%)")

    return Panel("pareto", "Accuracy against cost of the searches", draw)
