"""What a run will cost, before it starts: the cost table, and one step's time and memory."""

import statistics
import sys
import time
from datetime import timedelta
from itertools import cycle, islice
from pathlib import Path

import torch

from brevitas_multiquant.core.text_table import text_table
from brevitas_multiquant.recipes.results.report import cost_columns
from brevitas_multiquant.recipes.run.loop import groups
from brevitas_multiquant.recipes.run.run import Run

WARM_UP, TIMED = 1, 3
MB = 1e6


def dry_run(run: Run) -> None:
    """Print the table and the measurements; writes nothing."""
    costs = run.trainee.costs(run.options.data.img_size)
    if costs is not None and run.accelerator.is_main_process:
        columns = cost_columns([costs[bits] for bits in run.bits])
        names = ["bits", *map(str, run.bits)]
        rows = [[name, *cells] for name, cells in zip(names, columns, strict=True)]
        print(text_table(rows, ">"))
    seconds = time_steps(run)
    if run.accelerator.is_main_process:
        print(step_line(run, seconds))
        print(total_line(run, seconds))


def time_steps(run: Run) -> float:
    """Median seconds of a step, reading its batches included, after one to warm up."""
    run.step.task.train()
    batches = cycle(run.train.epoch(0))
    reset_peak(run.accelerator.device)
    seconds = []
    for step, group in enumerate(
        islice(groups(batches, run.options.execution.grad_accum_steps), WARM_UP + TIMED)
    ):
        started = time.perf_counter()
        run.step(group, 0, step, step)
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds[WARM_UP:])


def step_line(run: Run, seconds: float) -> str:
    """A step in numbers."""
    return (
        f"one step: {run.images_per_step} images, {seconds:.3g} s, "
        f"{run.images_per_step / seconds:.0f} images/s, "
        f"peak memory {peak_memory(run.accelerator.device)}"
    )


def total_line(run: Run, seconds: float) -> str:
    """All steps in hours."""
    epochs = run.options.optimisation.epochs
    total = timedelta(seconds=round(seconds * run.steps * epochs))
    return f"{epochs} epochs of {run.steps} steps: {total} without evaluation"


def reset_peak(device: torch.device) -> None:
    """Start to measure the peak here, where the system can."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif sys.platform == "linux":
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory(device: torch.device) -> str:
    """The most memory since `reset_peak`: of the allocator on a GPU, else of the process."""
    if device.type == "cuda":
        return f"{torch.cuda.max_memory_allocated(device) / MB:.0f} MB on the GPU"
    if sys.platform == "linux":
        lines = Path("/proc/self/status").read_text().splitlines()
        peak = next(line for line in lines if line.startswith("VmHWM"))
        return f"{int(peak.split()[1]) * 1024 / MB:.0f} MB of the process"
    return "not known on this system"
