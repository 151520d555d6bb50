"""Methods of run-time bit-widths under one recipe: several seeds, one table, one plot.

    python -m benchmarks.methods --run --data-dir FOLDER --output OUT
    python -m benchmarks.methods

FOLDER holds train.tar and val.tar, class folders of images; ``--run`` makes the runs that are
missing, one after another, the first seed of every variant first. Each is ``recipes/train.py -c
common_cifar10_resnet8`` with the options of its row below; a run that is whole is not repeated, one
that was stopped goes on where it was, to the bit. What the table needs of a whole run is kept in
``benchmarks/results/methods``.

Protocol: the accuracy is that of the last epoch. Validation images choose nothing, no epoch, no
option and no seed. Differences below the spread of the seeds are no result.
"""

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from benchmarks.methods_finn import NARROW, WIDE, luts_and_dsps
from benchmarks.pages import RESULTS_PAGE, ROOT, write_between
from brevitas_multiquant import cost, load_packed
from brevitas_multiquant.core.method import METHODS
from brevitas_multiquant.recipes.results.checkpoints import checkpoints_in
from brevitas_multiquant.recipes.results.report import accuracy_of, read_summary
from brevitas_multiquant.recipes.results.run_folder import LAST_FILE

KEPT = ROOT / "benchmarks" / "results" / "methods"
CONFIG = "common_cifar10_resnet8"
IMAGE_SIZE = 16
FLOAT_BITS = 32
FACTS = "facts.json"
CPU_SECONDS = "cpu_seconds.json"


@dataclass(frozen=True)
class Variant:
    """One row of the table.

    Args:
        label: for people.
        bits: candidate bit-widths; (32,) for the float network.
        options: of the recipe, beside the configuration.
        method: the row of `METHODS`; None for the float network.
        hardware: its row in ``benchmarks/methods_finn.py``; default: the method's.
    """

    label: str
    bits: tuple[int, ...]
    options: tuple[str, ...] = ()
    method: str | None = None
    hardware: str | None = None

    @property
    def arguments(self) -> list[str]:
        """Of ``recipes/train.py``."""
        if self.method is None:
            return ["--float"]
        bits = ("--bits", *map(str, self.bits))
        return ["--method", self.method, *bits, *NORMS, *self.options]


NORMS = ("--norm-batches", "10")
SAMPLED = ("--bits-per-step", "2.5")
"""The same for all methods: the largest and the smallest bit-width run in every step, a third one
in every other. That is 6 of 10 branch passes for MultiQuant, and 2.5 of 4 for one body."""

LISTS = {WIDE: (RESULTS_PAGE, ROOT / "docs" / "methods.md"), NARROW: (RESULTS_PAGE,)}
"""Candidate list -> the pages that show its table."""

VARIANTS = {
    "multiquant": Variant("MultiQuant", WIDE, SAMPLED, "multiquant"),
    "adabits_centered": Variant(
        "AdaBits, centered",
        WIDE,
        ("--grid", "centered", *SAMPLED),
        "adabits",
        "adabits, centered",
    ),
    # Published with float shortcuts; the other methods quantize them.
    "any_precision": Variant(
        "Any-Precision",
        WIDE,
        ("--shortcuts", "quantized", *SAMPLED),
        "any_precision",
        "any_precision, quantized shortcuts",
    ),
    "double_rounding": Variant("Double Rounding", WIDE, SAMPLED, "double_rounding"),
    "individual_2": Variant("one network for 2 bits", (2,), (), "individual"),
    "individual_8": Variant("one network for 8 bits", (8,), (), "individual"),
    "float": Variant("float", (FLOAT_BITS,)),
    "multiquant_234": Variant("MultiQuant", NARROW, SAMPLED, "multiquant", f"multiquant {NARROW}"),
    "bit_mixer_234": Variant("Bit-Mixer", NARROW, SAMPLED, "bit_mixer", f"bit_mixer {NARROW}"),
    "double_rounding_234": Variant(
        "Double Rounding", NARROW, SAMPLED, "double_rounding", f"double_rounding {NARROW}"
    ),
}
ONE_SEED = tuple(name for name, variant in VARIANTS.items() if variant.bits == NARROW)


@dataclass(frozen=True)
class Result:
    """What is kept of one run.

    Args:
        accuracy: bit-width -> top-1 in percent after the last epoch.
        facts: ``file_bytes``, ``bitops`` by bit-width, ``cpu_seconds``.
    """

    accuracy: Mapping[int, float]
    facts: Mapping[str, Any]


def run_name(variant: str, seed: int) -> str:
    """The folder of a run."""
    return f"{variant}_s{seed}"


def is_whole(folder: Path, epochs: int) -> bool:
    """Whether a run has made all epochs."""
    summary = folder / "summary.csv"
    return summary.is_file() and len(read_summary(folder)["epoch"]) >= epochs


STOPPED = (130, 143)
"""What the recipe ends with after SIGINT and SIGTERM: nobody wants the next run then."""


def train(name: str, seed: int, options: argparse.Namespace) -> None:
    """One run, from the start or from its newest checkpoint, unless it is whole."""
    make_run("train.py", run_name(name, seed), seed, VARIANTS[name].arguments, options)


def make_run(
    recipe: str, name: str, seed: int, arguments: Sequence[str], options: argparse.Namespace
) -> None:
    """One run of a recipe under the common configuration, unless it is whole.

    One that fails leaves its row empty, and the next one follows.

    Args:
        recipe: ``train.py`` or ``search.py``.
        name: of its folder.
        seed: of the run.
        arguments: beside the configuration.
        options: of this program: ``data_dir``, ``output``, ``epochs``, and `add_execution`'s.

    Raises:
        SystemExit: it was asked to stop.
    """
    folder = options.output / name
    if is_whole(folder, options.epochs):
        return
    command = [sys.executable, str(ROOT / "recipes" / recipe)]
    if checkpoints_in(folder):
        command += ["--resume", str(folder)]
    else:
        command += ["-c", CONFIG, "--data-dir", str(options.data_dir)]
        command += ["--epochs", str(options.epochs), "--seed", str(seed), "--overwrite"]
        command += ["--output", str(options.output), "--experiment", name, *arguments]
    before = cpu_seconds()
    try:
        threads = {"OMP_NUM_THREADS": str(options.threads)}
        command += ["--device", options.device]
        if options.compile and "--float" not in arguments:
            command.append("--compile")
        done = subprocess.run(command, env=os.environ | threads, check=False)
    finally:
        if folder.is_dir():
            add_seconds(folder / CPU_SECONDS, cpu_seconds() - before)
    if done.returncode in STOPPED:
        raise SystemExit(done.returncode)
    if done.returncode:
        print(f"{name} failed: exit status {done.returncode}", file=sys.stderr)


def add_execution(parser: argparse.ArgumentParser) -> None:
    """Options that say where and how a run is made; none changes what is trained."""
    parser.add_argument("--threads", type=int, default=1, help="of torch, for a run")
    parser.add_argument("--device", choices=["auto", "cpu"], default="cpu")
    parser.add_argument("--compile", action="store_true")


def cpu_seconds() -> float:
    """Of all child processes that have ended, user and system."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def add_seconds(path: Path, seconds: float) -> None:
    """Add to the sum in a file: a run may be made in several pieces."""
    before = json.loads(path.read_text()) if path.is_file() else 0.0
    path.write_text(json.dumps(round(before + seconds, 1)))


def keep(name: str, seed: int, output: Path) -> None:
    """Copy the rows of a whole run, and measure its network, for the table."""
    folder, kept = output / run_name(name, seed), KEPT / run_name(name, seed)
    facts = keep_rows(folder, kept)
    if VARIANTS[name].method is not None:
        net = load_packed(folder / LAST_FILE)
        costs = cost(net, net.input_shape)
        facts["bitops"] = {bits: costs[bits].bitops for bits in net.bits}
    write_facts(kept, facts)


def keep_rows(folder: Path, kept: Path) -> dict[str, Any]:
    """Copy the rows and options of a whole run.

    Returns:
        ``file_bytes`` and ``cpu_seconds`` of it.
    """
    kept.mkdir(parents=True, exist_ok=True)
    shutil.copy(folder / "summary.csv", kept)
    options = yaml.safe_load((folder / "args.yaml").read_text())
    elsewhere = ("config", "data_dir", "output", "initial_checkpoint")  # of the machine it ran on
    told = {name: value for name, value in options.items() if name not in elsewhere}
    (kept / "args.yaml").write_text(yaml.safe_dump(told, sort_keys=False))
    seconds = folder / CPU_SECONDS
    return {
        "file_bytes": (folder / LAST_FILE).stat().st_size,
        "cpu_seconds": json.loads(seconds.read_text()) if seconds.is_file() else None,
    }


def write_facts(kept: Path, facts: Mapping[str, Any]) -> None:
    """What is kept of a run beside its rows."""
    (kept / FACTS).write_text(json.dumps(facts, indent=1) + "\n")


def results_of(name: str, seeds: Iterable[int]) -> list[Result]:
    """The kept runs of a variant, a seed each."""
    found = []
    for seed in seeds:
        folder = KEPT / run_name(name, seed)
        if (folder / FACTS).is_file():
            columns = read_summary(folder)
            last = accuracy_of({column: values[-1] for column, values in columns.items()})
            found.append(Result(last, json.loads((folder / FACTS).read_text())))
    return found


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Mean, and standard deviation where there are several values."""
    mean = f"{statistics.mean(values):.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.{digits}f}"


def of_list(results: Mapping[str, Sequence[Result]], bits: Sequence[int]) -> list[str]:
    """The variants to show beside a candidate list: of it, of one of its bit-widths, and float."""
    of_methods = [name for name in results if VARIANTS[name].bits == bits]
    single = [name for name in results if set(VARIANTS[name].bits) < {*bits, FLOAT_BITS}]
    return of_methods + [name for name in single if of_methods and len(VARIANTS[name].bits) == 1]


def table(results: Mapping[str, Sequence[Result]], bits: Sequence[int]) -> str:
    """Markdown: a line for each variant of a candidate list."""
    shown = [*bits, FLOAT_BITS]
    head = ["method", "seeds", *(f"{bit} bits" for bit in bits), "float"]
    head += ["file kB", "GBitOPs at these bits", "FINN: kLUT (DSP)", "CPU min a run"]
    lines = [head, ["---"] * len(head)]
    for name in of_list(results, bits):
        runs = results[name]
        facts, variant = runs[0].facts, VARIANTS[name]
        row = variant.hardware or variant.method or ""
        cells = [
            spread([run.accuracy[bit] for run in runs]) if bit in runs[0].accuracy else ""
            for bit in shown
        ]
        operations = [f"{value / 1e9:.3f}" for value in facts.get("bitops", {}).values()]
        seconds = [run.facts["cpu_seconds"] for run in runs if run.facts["cpu_seconds"]]
        lines.append(
            [
                *(variant.label, str(len(runs)), *cells),
                f"{facts['file_bytes'] / 1e3:.1f}",
                " / ".join(operations),
                luts_and_dsps(row, variant.bits, IMAGE_SIZE),
                f"{statistics.mean(seconds) / 60:.0f}" if seconds else "",
            ]
        )
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def draw(results: Mapping[str, Sequence[Result]], path: Path) -> None:
    """Accuracy over bit-width: a panel for each candidate list, a line for each method."""
    from matplotlib import pyplot as plt

    from brevitas_multiquant.recipes.results.plots import COLOURS

    lists = [bits for bits in LISTS if of_list(results, bits)]
    if not lists:
        return
    figure, panels = plt.subplots(
        1, len(lists), figsize=(7.4 * len(lists), 4.4), squeeze=False, layout="constrained"
    )
    labels = dict.fromkeys(variant.label for variant in VARIANTS.values())
    colour_of = dict(zip(labels, COLOURS * 2, strict=False))
    for panel, bits in zip(panels[0], lists, strict=True):
        for name in of_list(results, bits):
            variant, runs = VARIANTS[name], results[name]
            style = {"color": colour_of[variant.label], "label": variant.label}
            values = {bit: [run.accuracy[bit] for run in runs] for bit in variant.bits}
            means = [statistics.mean(values[bit]) for bit in variant.bits]
            if variant.method is None:
                panel.axhline(means[0], linestyle="--", **style)
                continue
            errors = [statistics.stdev(values[bit]) if len(runs) > 1 else 0 for bit in values]
            panel.errorbar(variant.bits, means, errors, marker="o", capsize=3, **style)
        panel.set(xlabel="bit-width", ylabel="top-1 (%), last epoch", xticks=bits)
        panel.spines[["top", "right"]].set_visible(False)
        panel.grid(alpha=0.25)
        panel.legend(frameon=False, fontsize="small", loc="upper left", bbox_to_anchor=(1, 1))
    figure.savefig(path, dpi=130)
    plt.close(figure)


def trained_by_now(name: str) -> bool:
    """Whether this version of the package has the variant's method; says so where it has not."""
    method = VARIANTS[name].method
    known = method is None or method in METHODS
    if not known:
        print(f"{name}: no method {method} in this version, left out", file=sys.stderr)
    return known


def main() -> None:
    """Run what is missing where asked to; write the tables into RESULTS.md and draw the plot."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", action="store_true", help="make the runs that are missing")
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--output", type=Path, default=ROOT / "output" / "methods")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=30)
    add_execution(parser)
    options = parser.parse_args()
    if options.run and options.data_dir is None:
        parser.error("--run: give --data-dir, the folder of train.tar and val.tar")
    for seed in options.seeds:
        for name in options.variants:
            if name in ONE_SEED and seed != options.seeds[0]:
                continue
            if options.run and trained_by_now(name):
                train(name, seed, options)
            if is_whole(options.output / run_name(name, seed), options.epochs):
                keep(name, seed, options.output)
    found = {name: results_of(name, options.seeds) for name in VARIANTS}
    found = {name: runs for name, runs in found.items() if runs}
    if not any(of_list(found, bits) for bits in LISTS):
        print("no whole run of a method yet")
        return
    for bits, pages in LISTS.items():
        if of_list(found, bits):
            print(f"{table(found, bits)}\n")
            for page in pages:
                write_between(page, f"methods {bits[-1]}", table(found, bits))
    draw(found, KEPT / "accuracy.png")


if __name__ == "__main__":
    main()
