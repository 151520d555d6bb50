"""Figures of runs that are over or under way, from what they left in their folders."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from brevitas_multiquant import cost, load_packed
from brevitas_multiquant.recipes.errors import MissingFileError, OptionError, exit_code
from brevitas_multiquant.recipes.network.float_task import FLOAT_BITS
from brevitas_multiquant.recipes.options.plot import PlotOptions, parse_plot
from brevitas_multiquant.recipes.results import plots, report, run_folder


@dataclass(frozen=True)
class Drawn:
    """What a folder tells of its run.

    Args:
        folder: of the run.
        accuracy: bit-width -> top-1 in percent after the last epoch.
        costs: bit-width -> cost; None of a float network.
    """

    folder: Path
    accuracy: Mapping[int, float]
    costs: Mapping[int, Any] | None


def run(options: PlotOptions) -> None:
    """Draw, and print the path of every figure.

    Raises:
        MissingFileError: a folder that no run was in, or in which none ended an epoch.
        OptionError: a single figure of float networks, or a kind of file that is no figure.
        PackedFileError: a network of a run that cannot be read.
    """
    found = [read(Path(folder)) for folder in options.runs]
    for one in found:
        title = one.folder.resolve().name
        written = [plots.plot_learning_curves(one.folder, tuple(one.accuracy), title)]
        if one.costs is not None:
            figure = plots.plot_accuracy_cost(one.folder, one.accuracy, one.costs, title)
            written.append(figure)
        print(*written, sep="\n")
    if options.output is not None:
        print(plot_together(found, options.output))


def read(folder: Path) -> Drawn:
    """What a run left.

    Raises:
        MissingFileError, PackedFileError: as `run`.
    """
    summary = folder / report.SUMMARY_FILE
    if not summary.is_file():
        raise MissingFileError(
            f"expected the folder of a run with its {report.SUMMARY_FILE}, which is there after "
            f"the first epoch, got {folder}"
        )
    columns = report.read_summary(folder)
    accuracy = report.accuracy_of({name: values[-1] for name, values in columns.items()})
    costs = None
    if FLOAT_BITS not in accuracy:
        costs = cost(load_packed(folder / run_folder.LAST_FILE))
    return Drawn(folder, accuracy, costs)


def plot_together(found: Sequence[Drawn], output: str) -> Path:
    """Accuracy against cost of several runs in one figure.

    Raises:
        OptionError: as `run`.
    """
    points = {
        one.folder.resolve().name: [
            (one.costs[bits].bitops, top1, bits) for bits, top1 in one.accuracy.items()
        ]
        for one in found
        if one.costs is not None
    }
    if not points:
        raise OptionError("--output: expected runs with bit-widths, got float ones alone")
    try:
        return plots.plot_runs(Path(output), points)
    except ValueError as error:  # of matplotlib, for a suffix that it does not know
        raise OptionError(f"--output {output}: expected the name of a figure: {error}") from error


def main(argv: Sequence[str] | None = None) -> int:
    """Run the recipe; 0 for success, 2 for wrong usage, 1 for any other named error."""
    return exit_code(lambda: run(parse_plot(argv)))


if __name__ == "__main__":
    sys.exit(main())
