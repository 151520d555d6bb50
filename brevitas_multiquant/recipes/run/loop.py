"""The training loop: epochs of updates, an evaluation and checkpoints after each."""

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from itertools import islice

from tqdm import tqdm

from brevitas_multiquant.recipes.errors import Interrupted
from brevitas_multiquant.recipes.network.accuracy import Batches, Evaluation, evaluation
from brevitas_multiquant.recipes.network.health import collapsed_ranges
from brevitas_multiquant.recipes.results import confusion, report, run_folder
from brevitas_multiquant.recipes.run.interrupt import StopRequest
from brevitas_multiquant.recipes.run.norms import refresh_norms
from brevitas_multiquant.recipes.run.run import Run, save_checkpoint
from brevitas_multiquant.recipes.run.step import Batch


def fit(run: Run, before_epoch: Callable[[Run], None] | None = None) -> dict[int, float]:
    """Train from the run's progress to the last epoch; top-1 per bit-width at the end.

    Args:
        run: what is trained.
        before_epoch: called at the start of each epoch, before its first update.

    Raises:
        NonFiniteError: the loss or a parameter is no longer finite.
        Interrupted: a signal came; a checkpoint of the last whole step is written.
    """
    progress, epochs = run.progress, run.options.optimisation.epochs
    bar = tqdm(
        total=epochs * run.steps,
        initial=progress.epoch * run.steps + progress.step,
        desc="train",
        mininterval=1 if sys.stderr.isatty() else 30,
        disable=not run.accelerator.is_main_process,
    )
    with bar, StopRequest() as stop:
        try:
            while progress.epoch < epochs:
                if before_epoch is not None and not progress.step:
                    before_epoch(run)
                train_epoch(run, stop, bar)
                finish_epoch(run, stop, bar)
        except Interrupted as stopped:
            save_checkpoint(run)
            raise Interrupted(stopped.signal_number, run.resume_command) from None
    return report.accuracy_of(progress.history[-1])


def groups(batches: Iterator[Batch], size: int) -> Iterator[list[Batch]]:
    """The batches of each update; an incomplete last group is dropped."""
    while len(group := list(islice(batches, size))) == size:
        yield group


def train_epoch(run: Run, stop: StopRequest, bar: tqdm) -> None:
    """Train from the run's present step to the end of the epoch.

    Raises:
        NonFiniteError, Interrupted: as `fit`.
    """
    progress, interval = run.progress, run.options.output.recovery_interval
    size = run.options.execution.grad_accum_steps
    run.step.task.train()
    batches = run.train.epoch(progress.epoch, start=progress.step * size)
    left = run.steps - progress.step
    started = time.perf_counter()
    for group in islice(groups(batches, size), left):
        updates = progress.epoch * run.steps + progress.step
        result = run.step(group, progress.epoch, progress.step, updates, bool(stop.received))
        for scheduler in run.schedulers:
            scheduler.step_update(updates + 1)
        now = time.perf_counter()
        progress.seconds, started = progress.seconds + now - started, now
        progress.step += 1
        progress.loss_sum += result.loss
        show_step(run, result.loss, bar)
        if interval and progress.step % interval == 0:
            save_checkpoint(run)
        stop.obey(result.stop)


def show_step(run: Run, loss: float, bar: tqdm) -> None:
    """Advance the bar, and tell the tracker at every ``--log-interval``."""
    progress = run.progress
    bar.update()
    if progress.step % run.options.output.log_interval:
        return
    speed = images_per_second(run)
    mean = f"{progress.loss_sum / progress.step:.3f}"
    bar.set_postfix(
        {"epoch": progress.epoch + 1, "loss": mean, "images/s": f"{speed:.0f}"}, refresh=False
    )
    values = {"loss": loss, "lr": run.rate, "images_per_second": speed}
    run.accelerator.log(values, step=progress.epoch * run.steps + progress.step)


def images_per_second(run: Run) -> float:
    """Training images a second in this epoch, over all processes."""
    return run.progress.step * run.images_per_step / run.progress.seconds


def finish_epoch(run: Run, stop: StopRequest, bar: tqdm) -> None:
    """Evaluate, record a row of results, save the networks and a checkpoint.

    Raises:
        NonFiniteError, Interrupted: as `fit`; the epoch is not finished then.
    """
    progress = run.progress
    started = time.perf_counter()
    # Several processes evaluate to the end, or they would wait for each other.
    batches = stop.watch(run.val) if run.accelerator.num_processes == 1 else run.val
    measured = measure(run, batches)
    accuracy = measured.top1
    warn_of_useless_parts(run)
    loss = progress.loss_sum / run.steps
    row = report.summary_row(progress.epoch + 1, loss, progress.seconds, accuracy, run.rate)
    progress.history.append(row | run.trainee.values_of_epoch())
    if run.accelerator.is_main_process:
        bar.write(epoch_line(run, loss, accuracy, time.perf_counter() - started))
    mean = sum(accuracy.values()) / len(accuracy)
    improved, progress.best = mean > progress.best, max(mean, progress.best)
    progress.epoch, progress.step = progress.epoch + 1, 0
    progress.loss_sum = progress.seconds = 0.0
    for scheduler in run.schedulers:
        scheduler.step(progress.epoch)
    save_results(run, improved, measured)


def measure(run: Run, batches: Batches) -> Evaluation:
    """Evaluate what the run gives, with norms that are up to date."""
    refresh_norms(run)
    return evaluation(run.result, batches, run.bits, run.accelerator, run.step.num_classes)


def measure_again(run: Run) -> dict[int, float]:
    """Evaluate and save a network that changed after the last epoch; top-1 per bit-width.

    The last row of the results gets its accuracy.
    """
    measured = measure(run, run.val)
    run.progress.history[-1] |= report.accuracy_columns(measured.top1)
    run.progress.best = sum(measured.top1.values()) / len(measured.top1)
    save_results(run, True, measured)
    return measured.top1


def save_results(run: Run, improved: bool, measured: Evaluation) -> None:
    """After an epoch: the networks for use, then the checkpoint, then what people read."""
    row, task = run.progress.history[-1], run.image_task
    if run.accelerator.is_main_process:
        if improved:
            run.result.save(run.folder / run_folder.BEST_FILE, task)
        run.result.save(run.folder / run_folder.LAST_FILE, task)
        confusion.write_confusion(run.folder, measured.confusion)
    save_checkpoint(run)
    if run.accelerator.is_main_process:
        report.write_summary(run.folder, run.progress.history)
    run.accelerator.log(
        {name: value for name, value in row.items() if name != "epoch"},
        step=run.progress.epoch * run.steps,
    )


def warn_of_useless_parts(run: Run) -> None:
    """Say which ranges have collapsed and which branches give the same for every image."""
    useless = [f"the range {name} has collapsed to a point" for name in collapsed_ranges(run.net)]
    useless += [
        f"{branch} gives the same output for every image"
        for branch in run.result.dead_branches(run.val)
    ]
    if run.accelerator.is_main_process:
        for text in useless:
            tqdm.write(f"warning: epoch {run.progress.epoch + 1}: {text}", file=sys.stderr)


def epoch_line(run: Run, loss: float, accuracy: Mapping[int, float], evaluation: float) -> str:
    """What is printed after an epoch; the time left counts on epochs like this one."""
    progress, epochs = run.progress, run.options.optimisation.epochs
    parts = ", ".join(f"{bit} bits {value:.2f}" for bit, value in accuracy.items())
    remaining = (epochs - progress.epoch - 1) * (progress.seconds + evaluation)
    return (
        f"epoch {progress.epoch + 1}/{epochs}: loss {loss:.3f}; top-1 % {parts}; "
        f"{progress.seconds:.1f} s, {images_per_second(run):.0f} images/s, "
        f"{timedelta(seconds=round(remaining))} left"
    )
