"""Two processes from the command line: one writes, both stop together, and a resume is exact.

    python -m pytest integration_tests/test_two_processes.py

That their gradients equal one process's with twice the batch is in tests/recipes/test_ranks.py.
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch

from brevitas_multiquant.recipes.results.checkpoints import checkpoints_in, read_checkpoint
from tests.recipes.runs import NAME, rows_of, tensors_of, tiny

ROOT = Path(__file__).resolve().parents[1]
TRAIN = str(ROOT / "recipes" / "train.py")
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
MORE = ["--batch-size", "8", "--epochs", "3", "--model-ema", "--bits-per-step", "2.5"]
MORE += ["--bits", "2", "4", "6", "--hflip", "0.5", "--model-kwargs", "drop_rate=0.2"]


def popen(*command):
    """Start a command on the CPU, one thread per process; its errors can be read."""
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command,
        env=environment,
        cwd=ROOT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def finish(process):
    """The exit status, what was printed, and the errors."""
    output, errors = process.communicate(timeout=600)
    return process.returncode, output, errors


def train(*argv):
    """Train with two processes to the end."""
    status, output, errors = finish(popen(*TORCHRUN, TRAIN, *argv))
    assert status == 0, errors
    return output


def test_one_process_writes_and_a_stopped_run_resumes_to_the_same_bits(tmp_path):
    """SIGTERM reaches the workers; the run goes on in the middle of an epoch."""
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    output = train(*tiny(whole, *MORE))
    assert output.count("epoch 3/3") == 1
    assert [row["epoch"] for row in rows_of(whole)] == ["1", "2", "3"]
    assert not list(whole.rglob("*.partial"))

    process = popen(*TORCHRUN, TRAIN, *tiny(stopped, *MORE))
    while not checkpoints_in(stopped / NAME):
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    status, _, errors = finish(process)
    assert status != 0
    assert errors.count("Interrupted: stopped by signal 15") == 1
    progress = read_checkpoint(checkpoints_in(stopped / NAME)[-1]).values["progress"]
    assert progress["epoch"] < 3
    train("--resume", str(stopped / NAME))

    expected, resumed = tensors_of(whole), tensors_of(stopped)
    assert expected.keys() == resumed.keys()
    assert [name for name in expected if not torch.equal(expected[name], resumed[name])] == []


def test_a_loss_that_is_not_finite_stops_both_and_is_said_once(tmp_path):
    """The processes agree on it before either changes a parameter."""
    status, _, errors = finish(popen(*TORCHRUN, TRAIN, *tiny(tmp_path, *MORE, "--lr", "1e30")))
    assert status != 0
    assert errors.count("NonFiniteError: ") == 1
    assert "the first numbers that are not finite: " in errors


def test_accelerate_that_starts_one_process_for_two_is_noticed(tmp_path):
    """With --cpu it does, and says nothing."""
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2"]
    launch += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    status, _, errors = finish(popen(*launch, TRAIN, *tiny(tmp_path)))
    assert status != 0
    assert "LaunchError: accelerate launch was asked for 2 processes and started one" in errors
    assert "torchrun --nproc_per_node 2" in errors
    assert not list(tmp_path.iterdir())
