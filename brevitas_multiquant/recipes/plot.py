"""``report.html`` of runs that are over or under way, from what they left; figures for papers."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from brevitas_multiquant import load_packed
from brevitas_multiquant.recipes.errors import OptionError, exit_code
from brevitas_multiquant.recipes.options.plot import PlotOptions, parse_plot
from brevitas_multiquant.recipes.results import plots
from brevitas_multiquant.recipes.results.bits import PARETO_FILE
from brevitas_multiquant.recipes.results.layers import Running, what_runs
from brevitas_multiquant.recipes.results.page import panels_of, write_page, write_pareto_page
from brevitas_multiquant.recipes.results.report import last_accuracy, read_args
from brevitas_multiquant.recipes.results.run_folder import LAST_FILE


def run(options: PlotOptions) -> None:
    """Write pages and figures, and print the path of each.

    Raises:
        MissingFileError: a folder that no run was in, or in which none ended an epoch.
        OptionError: a single figure of float networks, or a kind of file that is no figure.
        PackedFileError, SourceError: as `brevitas_multiquant.load_packed`.
    """
    found: dict[Path, Mapping[int, Running]] = {}
    for folder in map(Path, options.runs):
        if (folder / PARETO_FILE).is_file():
            print(write_pareto_page(folder))
            continue
        found[folder] = running = running_of(folder)
        print(write_page(folder, running))
        if options.figures is not None:
            for one in panels_of(folder, running):
                print(one.save(folder / f"{one.name}.{options.figures}"))
    if options.output is not None:
        print(plot_together(found, options.output))


def running_of(folder: Path) -> Mapping[int, Running]:
    """What runs at each bit-width, of the packed file of a run; empty of a float network.

    Raises:
        MissingFileError, PackedFileError, SourceError: as `run`.
    """
    path = folder / LAST_FILE
    if read_args(folder)["float"] or not path.is_file():
        return {}
    net = load_packed(path)
    assert net.input_shape is not None  # the recipes build for one
    return what_runs(net, net.input_shape)


def plot_together(found: Mapping[Path, Mapping[int, Running]], output: str) -> Path:
    """Accuracy against cost of several runs in one figure.

    Raises:
        OptionError: as `run`.
    """
    points = {
        folder.resolve().name: [
            (running[bits].cost.bitops, top1, bits) for bits, top1 in last_accuracy(folder).items()
        ]
        for folder, running in found.items()
        if running
    }
    if not points:
        raise OptionError("--output: expected runs with bit-widths, got none or float ones alone")
    try:
        return plots.runs(points).save(Path(output))
    except ValueError as error:  # of matplotlib, for a suffix that it does not know
        raise OptionError(f"--output {output}: expected the name of a figure: {error}") from error


def main(argv: Sequence[str] | None = None) -> int:
    """Run the recipe; 0 for success, 2 for wrong usage, 1 for any other named error."""
    return exit_code(lambda: run(parse_plot(argv)))


if __name__ == "__main__":
    sys.exit(main())
