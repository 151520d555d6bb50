"""The short CIFAR-10 budget: base, ablations and the float network, several seeds, one table.

    python benchmarks/cifar10_short.py --data-dir FOLDER --output OUT

FOLDER holds train.tar and val.tar, class folders of images. Each run is ``recipes/train.py`` with
``recipes/configs/cifar10_jpeg_resnet8.yaml``; runs that are in OUT already are not repeated, and
those that were stopped go on. Prints a table of the last epoch's top-1 (mean and standard deviation
over the seeds), and draws the learning curves.
"""

import argparse
import csv
import os
import statistics
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CONFIG = ROOT / "recipes" / "configs" / "cifar10_jpeg_resnet8.yaml"
VARIANTS = {
    "base": [],
    "norms": ["--norm-batches", "10"],
    "serial": ["--selection", "serial"],
    "nodistill": ["--no-distill"],
    "sum": ["--merge", "sum"],
    "halved": ["--distill-loss", "halved"],
    "copy": ["--branch-init", "copy"],
    "stand_ins": ["--bits-per-step", "2.4"],
    "finn": ["--profile", "finn"],
    "finn_int2": ["--profile", "finn", "--weights", "int2"],
    "finn_ternary": ["--profile", "finn", "--weights", "ternary"],
    "w2a2": ["--profile", "finn", "--bits", "2"],
    "w2a2_int2": ["--profile", "finn", "--bits", "2", "--weights", "int2"],
    "w2a2_ternary": ["--profile", "finn", "--bits", "2", "--weights", "ternary"],
    "float": ["--float"],
}
DRAWN = {"8", "32"}  # a network of 2 bits alone is in the table only
LABELS = {
    "base": "amortized, distillation, mean",
    "norms": "the same, norms estimated anew",
    "serial": "serial selection",
    "nodistill": "without distillation",
    "sum": "sum of branches (eq. 6)",
    "halved": "(CE + KD) / 2",
    "copy": "branches start equal",
    "stand_ins": "stand-ins, 6 passes of 10, norms anew",
    "finn": "finn profile",
    "finn_int2": "finn profile, int2 weights",
    "finn_ternary": "finn profile, ternary weights",
    "w2a2": "finn profile, 2 bits alone (W2A2)",
    "w2a2_int2": "the same, int2 weights",
    "w2a2_ternary": "the same, ternary weights",
    "float": "float ResNet-8",
}


def train(name: str, seed: int, options: argparse.Namespace) -> Path:
    """One run, unless its summary is there; the path of its summary."""
    experiment = f"{name}_s{seed}"
    summary = options.output / experiment / "summary.csv"
    if len(read(summary)) < options.epochs:
        command = [sys.executable, str(ROOT / "recipes" / "train.py"), "-c", str(CONFIG)]
        command += ["--data-dir", str(options.data_dir), "--val-split", "val"]
        command += ["--epochs", str(options.epochs), "--output", str(options.output)]
        command += ["--experiment", experiment, "--overwrite", "--seed", str(seed)]
        command += VARIANTS[name]
        if any(summary.parent.glob("checkpoint-*")):  # resumed to the bit
            command = [*command[:2], "--resume", str(summary.parent)]
        subprocess.run(command, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    return summary


def read(summary: Path) -> list[dict[str, float]]:
    """Rows of a summary.csv, numbers as floats; none where there is no file."""
    if not summary.is_file():
        return []
    with summary.open() as file:
        return [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]


def accuracies(row: dict[str, float]) -> dict[str, float]:
    """Bit-width -> top-1 of one row."""
    prefix, suffix = "eval_top1_", "b"
    return {
        key.removeprefix(prefix).removesuffix(suffix): value
        for key, value in row.items()
        if key.startswith(prefix)
    }


def table(runs: dict[str, list[list[dict[str, float]]]]) -> str:
    """Markdown: one line a variant, mean and standard deviation over its seeds."""
    lines = ["| | seeds | 2 bits | 4 bits | 6 bits | 8 bits |", "|---|---|---|---|---|---|"]
    for name, seeds in runs.items():
        last = [accuracies(rows[-1]) for rows in seeds]
        cells = [
            spread([run[bits] for run in last]) if bits in last[0] else ""
            for bits in ("2", "4", "6", "8")
        ]
        if name == "float":
            cells = [spread([run["32"] for run in last]) + " (32 bits)", "", "", ""]
        lines.append(f"| {LABELS[name]} | {len(seeds)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def spread(values: list[float]) -> str:
    """Mean, and standard deviation where there are several values."""
    mean = f"{statistics.mean(values):.1f}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.1f}"


def draw(runs: dict[str, list[list[dict[str, float]]]], path: Path) -> None:
    """Learning curves: a panel per bit-width, a line a variant, its seeds as a band."""
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, 4, figsize=(13, 3.6), sharey=True, layout="constrained")
    for panel, bits in zip(panels, ("2", "4", "6", "8"), strict=True):
        for name, seeds in runs.items():
            key = "32" if name == "float" else bits
            curves = [[accuracies(row)[key] for row in rows] for rows in seeds]
            epochs = range(1, len(curves[0]) + 1)
            means = [statistics.mean(values) for values in zip(*curves, strict=True)]
            style = {"color": "0.5", "linestyle": "--"} if name == "float" else {}
            (line,) = panel.plot(epochs, means, label=LABELS[name], **style)
            lowest, highest = (
                [pick(values) for values in zip(*curves, strict=True)] for pick in (min, max)
            )
            panel.fill_between(epochs, lowest, highest, alpha=0.15, color=line.get_color())
        panel.set(title=f"{bits} bits", xlabel="epoch", xticks=list(epochs))
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("top-1 %")
    figure.legend(*panels[0].get_legend_handles_labels(), ncols=5, loc="outside lower center")
    figure.savefig(path, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--collect", action="store_true", help="run nothing, use what is there")
    options = parser.parse_args()
    runs = {}
    for name in options.variants:
        summaries = [options.output / f"{name}_s{seed}" / "summary.csv" for seed in options.seeds]
        if not options.collect:
            summaries = [train(name, seed, options) for seed in options.seeds]
        complete = [rows for path in summaries if len(rows := read(path)) == options.epochs]
        if complete:
            runs[name] = complete
    print(table(runs))
    drawn = {name: seeds for name, seeds in runs.items() if DRAWN & accuracies(seeds[0][0]).keys()}
    if drawn:
        draw(drawn, options.output / "learning_curves.png")


if __name__ == "__main__":
    main()
