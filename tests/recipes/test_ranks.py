"""Two processes train as one process with twice the batch does."""

import os
import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from recipes import train
from recipes.options import parse_train
from recipes.state import STATE_FILE, save_state
from tests.recipes.one_of_two_ranks import gradients
from tests.recipes.runs import NAME, tiny

ROOT = Path(__file__).resolve().parents[2]

# Float32 sums in another order differ by about 1e-6, and may push a code over a rounding threshold.
# The gradients of half the batch alone differ by 1e-2 to 10, each relative to its norm.
TOLERANCE = 1e-3


def run_two_ranks(output: Path, *argv: str) -> dict[str, dict[str, Tensor]]:
    """What each of two processes wrote, by file name."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    worker = ["-m", "tests.recipes.one_of_two_ranks", str(output)]
    subprocess.run(
        [sys.executable, *torchrun, *worker, *argv],
        env=os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"},
        cwd=ROOT,
        check=True,
        timeout=300,
    )
    return {path.name: load_file(path) for path in output.glob("*_[01]")}


def test_two_processes_train_as_one_with_twice_the_batch(tmp_path):
    """Gradients with norms in evaluation mode, as those of half a batch normalise otherwise.

    After an epoch in training mode both processes hold the same parameters, ranges and running
    statistics, so that they evaluate and save the same network.
    """
    run = train.create_run(parse_train(tiny(tmp_path)))
    train.start(run)
    save_state(tmp_path / NAME / STATE_FILE, run.net, run.optimizers, run.progress)
    half = str(run.args.batch_size // 2)
    two = run_two_ranks(tmp_path, "--resume", str(tmp_path / NAME), "--batch-size", half)

    for name, expected in gradients(run).items():
        difference = two["gradients_0"][name] - expected
        assert difference.norm() <= TOLERANCE * expected.norm(), name
    for kind in ("gradients", "state"):
        first, second = two[f"{kind}_0"], two[f"{kind}_1"]
        assert first.keys() == second.keys()
        assert [name for name in first if not torch.equal(first[name], second[name])] == []
