"""What a run leaves for people: args.yaml, summary.csv, a table."""

import csv
import os
import platform
import re
import subprocess
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import yaml

from brevitas_multiquant.core.precision import Assignment
from brevitas_multiquant.core.preprocessing import Preprocessing
from brevitas_multiquant.core.text_table import text_table
from brevitas_multiquant.core.units import unit_of_bytes
from brevitas_multiquant.recipes.errors import MissingFileError
from brevitas_multiquant.recipes.options.train import TrainOptions
from brevitas_multiquant.recipes.options.yaml_files import ENVIRONMENT, as_yaml
from brevitas_multiquant.recipes.results.checkpoints import PARTIAL
from brevitas_multiquant.version import __version__

PACKAGES = ("torch", "torchvision", "timm", "accelerate", "brevitas")
LIBRARY = "brevitas_multiquant"
SUMMARY_FILE = "summary.csv"
ARGS_FILE = "args.yaml"


def git_commit() -> str | None:
    """The commit of this checkout, with ``-dirty`` after local changes; None outside of git."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(
            command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def hardware() -> str:
    """The machine in one line."""
    names = Path("/proc/cpuinfo")
    lines = names.read_text().splitlines() if names.is_file() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    cpu = models[0] if models else platform.processor() or platform.machine()
    parts = [cpu, f"{torch.get_num_threads()} torch threads", platform.system()]
    if torch.cuda.is_available():
        parts.insert(0, f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}")
    return ", ".join(parts)


def save_args(
    train: TrainOptions, folder: Path, preprocessing: Preprocessing | None = None
) -> None:
    """Write ``args.yaml``: all options, so that it serves as ``-c``, and the environment.

    That is versions and machine, and what becomes of an image where options leave it open.
    """
    options = dict(sorted(train.flat().items()))
    options[ENVIRONMENT] = {
        "versions": {LIBRARY: __version__, **{name: version(name) for name in PACKAGES}},
        "python": platform.python_version(),
        "commit": git_commit(),
        "hardware": hardware(),
    }
    if preprocessing is not None:
        options[ENVIRONMENT]["preprocessing"] = preprocessing.to_dict()
    text = as_yaml(options)
    aside = folder / f"{ARGS_FILE}{PARTIAL}"
    aside.write_text(text, encoding="utf-8")
    os.replace(aside, folder / ARGS_FILE)


def read_args(folder: Path) -> dict[str, Any]:
    """What ``args.yaml`` holds: options, and the environment.

    Raises:
        MissingFileError: there is none.
    """
    path = folder / ARGS_FILE
    if not path.is_file():
        raise MissingFileError(
            f"{folder}: expected the folder of a run, found no {ARGS_FILE} in it"
        )
    return dict(yaml.safe_load(path.read_text(encoding="utf-8")))


def top1_columns(accuracy: Mapping[int, float]) -> dict[str, float]:
    """Bit-width -> percent, under the names that ``summary.csv`` has: ``top1_2b``."""
    return {f"top1_{bit}b": value for bit, value in accuracy.items()}


def summary_row(
    epoch: int, loss: float, seconds: float, accuracy: Mapping[int, float], lr: float
) -> dict[str, float]:
    """An epoch's results, under the names that ``summary.csv`` has, which are timm's.

    Args:
        epoch: from 1.
        loss: mean over its updates.
        seconds: of its updates.
        accuracy: bit-width -> top-1 in percent.
        lr: of the model, at its end.
    """
    return {
        "epoch": epoch,
        "train_loss": loss,
        "train_seconds": round(seconds, 2),
        **accuracy_columns(accuracy),
        "lr": lr,
    }


def accuracy_columns(accuracy: Mapping[int, float]) -> dict[str, float]:
    """Bit-width -> top-1 in percent, under the names of `summary_row`."""
    return {f"eval_{name}": value for name, value in top1_columns(accuracy).items()}


def accuracy_of(row: Mapping[str, float]) -> dict[int, float]:
    """Bit-width -> top-1 in percent of a row of `summary_row`."""
    found = ((re.fullmatch(r"eval_top1_(\d+)b", name), value) for name, value in row.items())
    return {int(match[1]): value for match, value in found if match}


def write_summary(folder: Path, rows: Sequence[Mapping[str, float]]) -> None:
    """Write ``summary.csv``, a row per epoch, at once; names with a ``/`` are of other files."""
    if rows:
        columns = [name for name in rows[0] if "/" not in name]
        write_rows(folder / SUMMARY_FILE, columns, counted(rows))


def counted(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """All rows of a run with their epochs from 1; older releases began at 0.

    Example:
        >>> counted([{"epoch": 0, "lr": 0.1}, {"epoch": 2, "lr": 0.01}])
        [{'epoch': 1, 'lr': 0.1}, {'epoch': 2, 'lr': 0.01}]
    """
    return [{**row, "epoch": epoch} for epoch, row in enumerate(rows, 1)]


def write_rows(path: Path, columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> None:
    """Write some columns of rows as a CSV file, at once; what a row lacks is left empty."""
    aside = path.with_name(f"{path.name}{PARTIAL}")
    with open(aside, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    os.replace(aside, path)


def read_rows(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file."""
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def read_summary(folder: Path) -> dict[str, list[float]]:
    """The columns of ``summary.csv``."""
    return read_columns(folder / SUMMARY_FILE)


def last_accuracy(folder: Path) -> dict[int, float]:
    """Bit-width -> top-1 in percent after the last epoch that ``summary.csv`` has."""
    last = read_rows(folder / SUMMARY_FILE)[-1]
    return accuracy_of({name: float(value) for name, value in last.items()})


def read_columns(path: Path) -> dict[str, list[float]]:
    """The columns of a CSV file of numbers."""
    rows = read_rows(path)
    return {name: [float(row[name]) for row in rows] for name in rows[0]}


def result_table(
    accuracy: Mapping[Any, float],
    costs: Mapping[Any, Any] | None = None,
    measured: str = "top-1 %",
) -> str:
    """`result_rows` as aligned text."""
    return text_table(result_rows(accuracy, costs, measured), ">")


def result_rows(
    accuracy: Mapping[Any, float],
    costs: Mapping[Any, Any] | None = None,
    measured: str = "top-1 %",
) -> list[list[str]]:
    """What was measured, per bit-width or assignment, beside cost where known; the header first."""
    names = [one.name if isinstance(one, Assignment) else str(one) for one in accuracy]
    rows = [[n, f"{value:.2f}"] for n, value in zip(names, accuracy.values(), strict=True)]
    rows.insert(0, ["bits", measured])
    if costs:
        columns = cost_columns([costs[setting] for setting in accuracy])
        rows = [[*row, *cells] for row, cells in zip(rows, columns, strict=True)]
    return rows


def cost_columns(costs: Sequence[Any]) -> list[list[str]]:
    """What bit-widths or assignments cost, a row for each; the header first."""
    one, unit = unit_of_bytes(cost.bytes for cost in costs)
    return [["branches", "MMACs", "GBitOPs", unit], *(_cost_cells(cost, one) for cost in costs)]


def _cost_cells(cost: Any, unit: float) -> list[str]:
    branches = cost.branches
    count = branches if isinstance(branches, int | float) else len(branches)
    return [
        str(count),
        f"{cost.macs / 1e6:.1f}",
        f"{cost.bitops / 1e9:.3f}",
        f"{cost.bytes / unit:.1f}",
    ]
