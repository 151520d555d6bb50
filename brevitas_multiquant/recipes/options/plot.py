"""The options of ``plot``."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass

from brevitas_multiquant.recipes.options.option import (
    Parser,
    add_options,
    argument,
    option,
    taken,
)

KINDS = ("png", "svg", "pdf")
"""Of files of figures."""


@dataclass(frozen=True)
class PlotOptions:
    """Which runs to draw."""

    runs: list[str] = argument("RUN", "folder of a run", nargs="+")
    figures: str | None = option(choices=KINDS, help="write every figure of the page as a file too")
    output: str | None = option(
        metavar="FILE",
        help="accuracy of all of them against bit operations, in one figure; by its name a PNG, "
        "SVG or PDF",
    )


def plot_parser() -> argparse.ArgumentParser:
    """All options of ``plot``."""
    parser = Parser("plot", description="Write report.html of runs anew, from what they left.")
    add_options(parser, PlotOptions)
    return parser


def parse_plot(argv: Sequence[str] | None = None) -> PlotOptions:
    """Parse the options.

    Example:
        >>> parse_plot(["output/run", "--figures", "pdf"])
        PlotOptions(runs=['output/run'], figures='pdf', output=None)
    """
    return taken(PlotOptions, plot_parser().parse_args(argv))
