"""A run killed at any moment ends, after ``--resume``, with the bits of an uninterrupted one.

    python -m pytest integration_tests/test_resume.py

The moments are drawn with a fixed seed from all moments that the uninterrupted run had.
"""

import csv
import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import tarfile
import time
from contextlib import suppress
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from brevitas_multiquant.recipes.results.checkpoints import checkpoints_in, read_checkpoint
from brevitas_multiquant.recipes.results.report import SUMMARY_FILE
from integration_tests import killed_run

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")

ROOT = Path(__file__).resolve().parents[1]
NAME = "run"
EVERYTHING = [
    *("--img-size", "8", "--subset", "48", "--batch-size", "8", "--hflip", "0.5"),
    *("--model-kwargs", "drop_rate=0.2", "--bits", "2", "4", "6", "--bits-per-step", "2.5"),
    *("--epochs", "2", "--warmup-epochs", "1", "--sched-on-updates", "--lr", "0.02"),
    *("--smoothing", "0.1", "--mixup", "0.2", "--cutmix", "1.0", "--grad-accum-steps", "2"),
    *("--model-ema", "--model-ema-warmup", "--recovery-interval", "2", "--device", "cpu"),
]
KILLS = {
    **{"calibrate": 2, "step": 8, "evaluate": 4},
    **{"half written": 2, "before rename": 2, "after rename": 2},
}
# A server that has imported torch once, and forks a child for each run.
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["integration_tests.killed_run"])


def start(target, *args):
    """Run ``target`` in a child; its exit status, negative for a signal."""
    child = CONTEXT.Process(target=target, args=args)
    child.start()
    child.join(timeout=300)
    with suppress(ProcessLookupError):
        # Loader workers outlive a parent that was killed.
        os.killpg(child.pid, signal.SIGKILL)
    assert child.exitcode is not None, "the run hangs"
    return child.exitcode


def moments(argv, output, kills):
    """Train without interruption; then draw moments to kill at from those that it had."""
    queue = CONTEXT.SimpleQueue()
    log = str(output / "log")
    argv = [*argv, "--output", str(output), "--experiment", NAME]
    assert start(killed_run.count_moments, argv, queue, log) == 0, Path(log).read_text()
    status, counts = queue.get()
    assert status == 0, Path(log).read_text()
    draw = random.Random(0)
    return [
        (phase, count)
        for phase, number in kills.items()
        for count in draw.sample(range(1, counts[phase] + 1), number)
    ]


def results(folder):
    """Everything a run leaves that does not depend on the clock."""
    newest = read_checkpoint(checkpoints_in(folder)[-1])
    values = json.loads(json.dumps(newest.values))
    with open(folder / SUMMARY_FILE, newline="") as file:
        rows = list(csv.DictReader(file))
    for row in (*rows, *values["progress"]["history"]):
        del row["train_seconds"]
    packed = {name: (folder / f"{name}.safetensors").read_bytes() for name in ("best", "last")}
    names = sorted(path.name for path in folder.iterdir())
    return dict(newest.tensors), values, rows, packed, names


def assert_same(folder, expected):
    """The run in ``folder`` left what another left, to the bit."""
    tensors, *others = results(folder)
    assert tensors.keys() == expected[0].keys()
    different = [name for name in tensors if not torch.equal(tensors[name], expected[0][name])]
    assert different == []
    assert others == list(expected[1:])


def resume(output, argv):
    """Go on as a user does: with ``--resume``, or from the start where nothing was left yet."""
    folder = output / NAME
    log = str(output / "log")
    if (folder / "args.yaml").is_file():
        argv = ["--resume", str(folder)]
    else:
        argv = [*argv, "--output", str(output), "--experiment", NAME, "--overwrite"]
    status = start(killed_run.train_until, argv, None, log)
    assert status == 0, Path(log).read_text()


def kill_and_resume(argv, tmp_path, kills):
    """Kill a run at each moment drawn, resume it, and compare."""
    whole = tmp_path / "whole"
    whole.mkdir()
    drawn = moments(argv, whole, kills)
    expected = results(whole / NAME)
    for index, moment in enumerate(drawn):
        output = tmp_path / str(index)
        output.mkdir()
        own = [*argv, "--output", str(output), "--experiment", NAME]
        status = start(killed_run.train_until, own, moment, str(output / "log"))
        assert status == -signal.SIGKILL, (moment, (output / "log").read_text())
        for path in checkpoints_in(output / NAME):
            read_checkpoint(path)
        resume(output, argv)
        assert_same(output / NAME, expected)


def test_killed_at_twenty_moments_a_run_ends_with_the_same_bits(tmp_path):
    """With everything that has a state: moving average, momentum, schedule, mixup, dropout."""
    assert sum(KILLS.values()) == 20
    kill_and_resume(EVERYTHING, tmp_path, KILLS)


def test_images_read_by_workers_resume_to_the_same_bits(tmp_path):
    """Random crops in worker processes, float baseline: the order of reading does not matter."""
    draw = np.random.default_rng(0)
    for split, count in (("train", 24), ("val", 8)):
        with tarfile.open(tmp_path / f"{split}.tar", "w") as tar:
            for index in range(count):
                content = BytesIO()
                pixels = draw.integers(0, 256, (40, 48, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(content, "PNG")
                info = tarfile.TarInfo(f"{'ab'[index % 2]}/{index}.png")
                info.size = content.tell()
                content.seek(0)
                tar.addfile(info, content)
    argv = [
        *("--dataset", "", "--data-dir", str(tmp_path), "--cache-limit-mb", "1"),
        *("--img-size", "128", "--batch-size", "4", "--workers", "2", "--float", "--device", "cpu"),
        *("--epochs", "2", "--recovery-interval", "1"),
    ]
    kill_and_resume(argv, tmp_path, {"step": 2})


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_saves_and_exits_and_the_run_resumes_to_the_same_bits(tmp_path, number, status):
    """The documented exit status, one line, no traceback."""
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    for output in (whole, stopped):
        output.mkdir()
    argv = [*EVERYTHING, "--epochs", "6", "--recovery-interval", "0"]
    ending = ["--experiment", NAME, "--output"]
    assert (
        start(killed_run.train_until, [*argv, *ending, str(whole)], None, str(whole / "log")) == 0
    )

    command = [sys.executable, str(ROOT / "recipes" / "train.py"), *argv, *ending, str(stopped)]
    process = subprocess.Popen(
        command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    )
    while not checkpoints_in(stopped / NAME):
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.02)
    process.send_signal(number)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == status, errors
    assert "Traceback" not in errors
    assert f"stopped by signal {number}" in errors

    resume(stopped, argv)
    assert_same(stopped / NAME, results(whole / NAME))
