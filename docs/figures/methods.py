"""Draw `methods.svg`: bodies and weights of each method at 2, 4 and 8 bits.

python docs/figures/methods.py
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib import pyplot as plt
from matplotlib.patches import FancyBboxPatch, Rectangle

from brevitas_multiquant.core.grids import centered, double, odd
from brevitas_multiquant.core.selection import amortized

BITS = (2, 4, 8)
COLOURS = {2: "#0072B2", 4: "#E69F00", 8: "#009E73"}  # of Wong's palette
INK, PALE, PAPER = "#1f2933", "#e4e7eb", "#ffffff"  # on white, whatever is around the picture


@dataclass(frozen=True)
class Row:
    """A method.

    Args:
        label: its name.
        runs: bit-width -> bodies that run, of ``bodies``.
        levels: bit-width -> the values that weights can have, between -1 and 1.
        stored: what a file holds of the weights.
        bodies: how many the network has.
    """

    label: str
    runs: Mapping[int, tuple[int, ...]]
    levels: Callable[[int], list[float]]
    stored: str
    bodies: int = 1


ONE_BODY = dict.fromkeys(BITS, (0,))


def values(grid: Any) -> list[float]:
    """The real weights of a grid."""
    return [integer / grid.divisor for integer in grid.integers]


ROWS = (
    Row(
        "MultiQuant",
        {bits: amortized([2, 4, 6, 8])[bits] for bits in BITS},
        lambda bits: values(odd(2)),
        "2 bits a weight of each branch",
        bodies=4,
    ),
    Row(
        "AdaBits, centered; Bit-Mixer",
        ONE_BODY,
        lambda bits: values(centered(bits)),
        "integers of the most bits;\nfewer bits are the first bits of them",
    ),
    Row(
        "Double Rounding",
        ONE_BODY,
        lambda bits: values(double(bits)),
        "integers of the most bits;\nfewer bits are rounded from them",
    ),
    Row(
        "Any-Precision; AdaBits, original",
        ONE_BODY,
        lambda bits: values(odd(bits)),
        "float weights: no bit-width's\nintegers follow from another's",
    ),
    Row(
        "individual",
        ONE_BODY,
        lambda bits: values(odd(bits)),
        "one file for each bit-width",
    ),
)


def draw_bodies(axis: plt.Axes, row: Row) -> None:
    """A row of squares for each bit-width: those that run are filled."""
    axis.set(xlim=(-0.2, 4.6), ylim=(-0.2, 3.1))
    axis.axis("off")
    for line, bits in enumerate(BITS):
        for body in range(row.bodies):
            colour = COLOURS[bits] if body in row.runs[bits] else PALE
            # one body has the height of all branches of MultiQuant together
            width = 4.2 / row.bodies - 0.25
            corner = (body * 4.2 / row.bodies, 2.2 - line)
            style = {"boxstyle": "round,pad=0,rounding_size=0.12", "linewidth": 0}
            axis.add_patch(FancyBboxPatch(corner, width, 0.7, facecolor=colour, **style))


def draw_levels(axis: plt.Axes, row: Row) -> None:
    """A line of ticks for each bit-width: what a weight can be."""
    axis.set(xlim=(-1.1, 1.1), ylim=(-0.2, 3.1))
    for side in ("left", "right", "top"):
        axis.spines[side].set_visible(False)
    axis.spines["bottom"].set_color(PALE)
    axis.tick_params(length=0, labelsize=8, colors=INK)
    axis.set(xticks=[-1, 0, 1], yticks=[])
    for line, bits in enumerate(BITS):
        where = row.levels(bits)
        if len(where) > 16:  # nearer to each other than a line is wide
            across = where[-1] - where[0]
            axis.add_patch(Rectangle((where[0], 2.2 - line), across, 0.7, color=COLOURS[bits]))
            continue
        width = 2.2 if len(where) <= 4 else 1.4
        axis.vlines(where, 2.2 - line, 2.9 - line, color=COLOURS[bits], linewidth=width)


def draw(path: Path) -> None:
    """Write the picture."""
    text = {"svg.fonttype": "none", "font.family": "sans-serif", "font.size": 9}
    mpl.rcParams.update({"svg.hashsalt": "methods", **text})
    figure, axes = plt.subplots(
        *(len(ROWS), 4),
        figsize=(9.6, 1.25 * len(ROWS) + 0.5),
        width_ratios=(1.5, 1.5, 2.6, 2.0),
        layout="constrained",
        facecolor=PAPER,
    )
    for row, (name, bodies, levels, stored) in zip(ROWS, axes, strict=True):
        for axis, text in ((name, row.label.replace("; ", ";\n")), (stored, row.stored)):
            axis.axis("off")
            weight = "bold" if axis is name else "normal"
            axis.text(0, 0.5, text, va="center", color=INK, weight=weight)
        draw_bodies(bodies, row)
        draw_levels(levels, row)
    titles = ("", "bodies that run", "what a weight can be", "what a file holds")
    for axis, title in zip(axes[0], titles, strict=True):
        axis.set_title(title, loc="left", fontsize=9, color=INK)
    handles = [plt.Line2D([], [], color=COLOURS[bits], linewidth=5) for bits in BITS]
    labels = [f"at {bits} bits" for bits in BITS]
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


if __name__ == "__main__":
    draw(Path(__file__).with_suffix(".svg"))
