"""Mixed against uniform bits at equal cost, under one recipe: several seeds, one table, one plot.

    python -m benchmarks.mixed --run --data-dir FOLDER --output OUT
    python -m benchmarks.mixed

FOLDER holds train.tar and val.tar, class folders of images; ``--run`` makes the runs that are
missing, one after another, the first seed of every variant first; one that was stopped goes on
where it was, to the bit. What the table needs of a whole run is kept in
``benchmarks/results/mixed``.

Protocol: ``-c common_cifar10_resnet8`` twice. A float network takes the first half of all epochs,
and every variant of its seed starts from it and takes the second half: uniform bits; bits that an
allocator chose from the float weights and 256 training images; bits that are learned in the first
80% of that half. What a variant may cost is what the uniform network costs. The accuracy is that
of the last epoch; validation images choose nothing, no epoch, no option and no seed. Differences
below the spread of the seeds are no result.
"""

import argparse
import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from benchmarks.methods import (
    CONFIG,
    FACTS,
    NORMS,
    add_execution,
    is_whole,
    keep_rows,
    make_run,
    run_name,
    spread,
    write_facts,
)
from benchmarks.pages import RESULTS_PAGE, ROOT, write_between
from brevitas_multiquant import Budget, allocate, cost, load_packed
from brevitas_multiquant.recipes.network.build import create_float_model, model_source
from brevitas_multiquant.recipes.network.multi_branch import IMAGE_CHANNELS
from brevitas_multiquant.recipes.options.train import parse_train
from brevitas_multiquant.recipes.results.report import accuracy_of, read_summary
from brevitas_multiquant.recipes.results.run_folder import LAST_FILE
from brevitas_multiquant.recipes.run.create import create_batches

KEPT = ROOT / "benchmarks" / "results" / "mixed"
FPS, BOARD = 1000, "ZCU104"
CANDIDATES = ("--bits", "2", "3", "4", "5", "6", "7", "8")


@dataclass(frozen=True)
class Network:
    """A float network.

    Args:
        model: its name.
        dsp: DSPs of the network with 4 bits everywhere at `FPS`, the most that others may take.
    """

    model: str
    dsp: int


NETWORKS = {
    "resnet8": Network("cifar_resnet8", 20),
    "mobilenetv1": Network("cifar_mobilenetv1", 88),
}


@dataclass(frozen=True)
class Limit:
    """What all networks of a comparison may cost: as much as the uniform one.

    Args:
        label: for people.
        bits: of the uniform network.
        unit: of the cost.
        profile: of the networks.
    """

    label: str
    bits: int
    unit: str = "bitops"
    profile: str = "paper"

    def budget(self, network: Network) -> Budget:
        """For `allocate`."""
        hardware: dict[str, Any] = {"target_fps": FPS, "board": BOARD, "dsp": network.dsp}
        return Budget(uniform=self.bits, of=self.unit, **hardware if self.unit == "luts" else {})

    def arguments(self, network: Network) -> list[str]:
        """The same for ``recipes/search.py``."""
        argv = ["--budget", f"uniform={self.bits}", "--budget-of", self.unit]
        if self.unit == "luts":
            argv += ["--target-fps", str(FPS), "--board", BOARD, "--dsp", str(network.dsp)]
        return argv


LIMITS = {
    "bitops3": Limit("BitOPs of 3 bits", 3),
    "bitops4": Limit("BitOPs of 4 bits", 4),
    "luts4": Limit("LUTs and DSPs of 4 bits", 4, "luts", "finn"),
}


@dataclass(frozen=True)
class Way:
    """How a network comes to its bits.

    Args:
        label: for people.
        recipe: that trains it.
        options: of the recipe.
        strategy: of `allocate`, where that says the bits.
        units: of costs that it can be held to.
    """

    label: str
    recipe: str
    options: tuple[str, ...] = ()
    strategy: str | None = None
    units: tuple[str, ...] = ("bitops", "luts")


SEARCH, TRAIN = "search.py", "train.py"
WAYS = {
    "uniform": Way("uniform", TRAIN),
    "sqnr": Way("sqnr, then trained", TRAIN, strategy="sqnr"),
    "fracbits": Way("FracBits, layer by layer", SEARCH, CANDIDATES),
    "kernels": Way(
        "FracBits, kernel by kernel", SEARCH, (*CANDIDATES, "--kernel-wise"), units=("bitops",)
    ),
    "gates": Way("Bayesian Bits", SEARCH, ("--strategy", "bayesian_bits", "--bits", "2", "4", "8")),
}


@dataclass(frozen=True)
class Variant:
    """One row of the table."""

    network: str
    limit: str
    way: str

    def arguments(self, output: Path, seed: int) -> list[str]:
        """Of its recipe, beside the configuration."""
        network, limit, way = NETWORKS[self.network], LIMITS[self.limit], WAYS[self.way]
        start = output / run_name(float_of(self.network), seed) / LAST_FILE
        argv = ["--model", network.model, "--initial-checkpoint", str(start)]
        argv += ["--method", "individual", "--profile", limit.profile, *NORMS, *way.options]
        if way.strategy is not None:
            return [*argv, "--assignment", str(self.assignment_file(output, seed))]
        own = {TRAIN: ["--bits", str(limit.bits)], SEARCH: limit.arguments(network)}
        return [*argv, *own[way.recipe]]

    def assignment_file(self, output: Path, seed: int) -> Path:
        """Where the bits are that an allocator has chosen."""
        return output / f"{run_name(name_of(self), seed)}.json"


def name_of(variant: Variant) -> str:
    """The name of its row."""
    return f"{variant.network}_{variant.limit}_{variant.way}"


VARIANTS = {
    name_of(one): one
    for one in (
        Variant(network, limit, way)
        for network in NETWORKS
        for limit in LIMITS
        for way in WAYS
        if LIMITS[limit].unit in WAYS[way].units
    )
}


def float_of(network: str) -> str:
    """The run that the variants of a network start from."""
    return f"{network}_float"


def make(name: str, seed: int, options: argparse.Namespace) -> None:
    """One run, and before it the float one that it starts from."""
    variant = VARIANTS[name]
    before, way = float_of(variant.network), WAYS[variant.way]
    argv = ["--model", NETWORKS[variant.network].model, "--float"]
    make_run(TRAIN, run_name(before, seed), seed, argv, options)
    if not is_whole(options.output / run_name(before, seed), options.epochs):
        return
    if way.strategy is not None and not variant.assignment_file(options.output, seed).is_file():
        allocated(variant, way.strategy, seed, options)
    argv = variant.arguments(options.output, seed)
    make_run(way.recipe, run_name(name, seed), seed, argv, options)


def allocated(variant: Variant, strategy: str, seed: int, options: argparse.Namespace) -> None:
    """Write the bits that an allocator chooses from the float network and training images."""
    network = NETWORKS[variant.network]
    argv = ["-c", CONFIG, "--data-dir", str(options.data_dir), "--seed", str(seed)]
    asked = parse_train([*argv, "--model", network.model, "--float"])
    train, _ = create_batches(asked.data, 1, Accelerator(cpu=True))
    weights = options.output / run_name(float_of(variant.network), seed) / LAST_FILE
    model = create_float_model(model_source(asked.model, train.num_classes), False, str(weights))
    size = asked.data.img_size
    found = allocate(
        model.eval(),
        LIMITS[variant.limit].budget(network),
        strategy=strategy,
        data=train.epoch(0),
        input_shape=(1, IMAGE_CHANNELS, size, size),
    )
    print(found)
    found.assignment.save(variant.assignment_file(options.output, seed))


def keep(name: str, seed: int, output: Path) -> None:
    """Copy the rows of a whole run, and measure its network, for the table."""
    folder, kept = output / run_name(name, seed), KEPT / run_name(name, seed)
    facts = keep_rows(folder, kept)
    net = load_packed(folder / LAST_FILE)
    (bits,) = net.bits
    facts["bitops"] = cost(net)[bits].bitops
    if LIMITS[VARIANTS[name].limit].unit == "luts":
        total = cost(net, model="finn", target_fps=FPS, board=BOARD)[bits].total
        facts |= {"luts": total.luts, "dsp": total.dsp}
    if net.assignment is not None:
        facts["assignment"] = net.assignment.to_dict()
    write_facts(kept, facts)


@dataclass(frozen=True)
class Result:
    """What is kept of one run.

    Args:
        accuracy: top-1 in percent after the last epoch.
        facts: ``bitops``, ``luts`` and ``dsp`` where they are held, ``file_bytes``,
            ``cpu_seconds``.
    """

    accuracy: float
    facts: Mapping[str, Any]


def results_of(name: str, seeds: Iterable[int]) -> list[Result]:
    """The kept runs of a variant, a seed each."""
    found = []
    for seed in seeds:
        folder = KEPT / run_name(name, seed)
        if (folder / FACTS).is_file():
            columns = read_summary(folder)
            (last,) = accuracy_of({key: values[-1] for key, values in columns.items()}).values()
            found.append(Result(last, json.loads((folder / FACTS).read_text())))
    return found


HEAD = ("network", "no more than", "bits", "seeds", "top-1", "MBitOPs", "LUTs", "DSPs")
HEAD += ("file kB", "CPU min a run")


def table(results: Mapping[str, Sequence[Result]]) -> str:
    """Markdown: a line for each variant."""
    lines = [list(HEAD), ["---"] * len(HEAD)]
    for name, runs in results.items():
        variant = VARIANTS[name]
        cells = [NETWORKS[variant.network].model, LIMITS[variant.limit].label]
        cells += [WAYS[variant.way].label, str(len(runs))]
        cells += [spread([run.accuracy for run in runs])]
        scales = {"bitops": 1e6, "luts": 1.0, "dsp": 1.0, "file_bytes": 1e3, "cpu_seconds": 60.0}
        for fact, digits in zip(scales, (2, 0, 0, 1, 0), strict=True):
            values = [run.facts[fact] / scales[fact] for run in runs if run.facts.get(fact)]
            cells.append(f"{statistics.mean(values):.{digits}f}" if values else "")
        lines.append(cells)
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


UNITS = {"bitops": ("MBitOPs", 1e6), "luts": ("thousand LUTs", 1e3)}


def draw(results: Mapping[str, Sequence[Result]], path: Path) -> None:
    """Accuracy over cost: a panel for each network and unit, a colour for each way."""
    from matplotlib import pyplot as plt

    from brevitas_multiquant.recipes.results.plots import COLOURS

    panels = {(VARIANTS[one].network, LIMITS[VARIANTS[one].limit].unit): None for one in results}
    figure, axes = plt.subplots(
        1, len(panels), figsize=(5.6 * len(panels), 4.4), squeeze=False, layout="constrained"
    )
    for axis, (network, unit) in zip(axes[0], panels, strict=True):
        label, scale = UNITS[unit]
        for colour, (way, row) in zip(COLOURS, WAYS.items(), strict=False):
            names = [name for name in results if _is_of(name, network, unit, way)]
            runs = [results[name] for name in names]
            if not runs:
                continue
            costs = [statistics.mean(run.facts[unit] for run in of) / scale for of in runs]
            means = [statistics.mean(run.accuracy for run in of) for of in runs]
            errors = [statistics.stdev(r.accuracy for r in of) if len(of) > 1 else 0 for of in runs]
            style = {"color": colour, "label": row.label, "marker": "o", "capsize": 3}
            axis.errorbar(costs, means, errors, linestyle=":", **style)
        axis.set(xlabel=label, ylabel="top-1 (%), last epoch", title=NETWORKS[network].model)
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.25)
        axis.legend(frameon=False, fontsize="small")
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _is_of(name: str, network: str, unit: str, way: str) -> bool:
    variant = VARIANTS[name]
    return (variant.network, LIMITS[variant.limit].unit, variant.way) == (network, unit, way)


def main() -> None:
    """Run what is missing where asked to; write the table into RESULTS.md and draw the plot."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", action="store_true", help="make the runs that are missing")
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--output", type=Path, default=ROOT / "output" / "mixed")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=15, help="of each half")
    add_execution(parser)
    options = parser.parse_args()
    if options.run and options.data_dir is None:
        parser.error("--run: give --data-dir, the folder of train.tar and val.tar")
    torch.set_num_threads(options.threads)
    for seed in options.seeds:
        for name in options.variants:
            if options.run:
                make(name, seed, options)
            if is_whole(options.output / run_name(name, seed), options.epochs):
                keep(name, seed, options.output)
    found = {name: results_of(name, options.seeds) for name in VARIANTS}
    found = {name: runs for name, runs in found.items() if runs}
    if not found:
        print("no whole run yet")
        return
    print(table(found))
    write_between(RESULTS_PAGE, "mixed", table(found))
    draw(found, KEPT / "accuracy.png")


if __name__ == "__main__":
    main()
