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


@dataclass(frozen=True)
class PlotOptions:
    """Which runs to draw."""

    runs: list[str] = argument("RUN", "folder of a run", nargs="+")
    output: str | None = option(
        metavar="FILE",
        help="accuracy of all of them against bit operations, in one figure; by its name a PNG, "
        "SVG or PDF",
    )


def plot_parser() -> argparse.ArgumentParser:
    """All options of ``plot``."""
    parser = Parser(
        "plot", description="Draw learning curves and accuracy against cost of runs anew."
    )
    add_options(parser, PlotOptions)
    return parser


def parse_plot(argv: Sequence[str] | None = None) -> PlotOptions:
    """Parse the options.

    Example:
        >>> parse_plot(["output/run"]).runs
        ['output/run']
    """
    return taken(PlotOptions, plot_parser().parse_args(argv))
