"""Runs of two steps per epoch, and what they leave."""

import csv
from pathlib import Path

from torch import Tensor

from brevitas_multiquant.recipes.results.checkpoints import checkpoints_in, read_checkpoint
from brevitas_multiquant.recipes.results.report import SUMMARY_FILE

NAME = "run"
TINY = [
    *("--img-size", "8"),
    *("--subset", "64"),
    *("--batch-size", "32"),
    *("--lr", "0.01"),
    *("--bits", "2", "4"),
    *("--experiment", NAME),
]


def tiny(output: Path, *more: str) -> list[str]:
    """Arguments of a run of two steps per epoch that writes to ``output/run``."""
    return [*TINY, "--output", str(output), *more]


def rows_of(output: Path) -> list[dict[str, str]]:
    """The rows of ``summary.csv``."""
    with open(output / NAME / SUMMARY_FILE, newline="") as file:
        return list(csv.DictReader(file))


def tensors_of(output: Path) -> dict[str, Tensor]:
    """Every tensor of the newest checkpoint."""
    return dict(read_checkpoint(checkpoints_in(output / NAME)[-1]).tensors)
