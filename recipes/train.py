"""Train one network for every bit-width: ``accelerate launch recipes/train.py -c CONFIG.yaml``.

A run is a function of its options: whatever is random in an epoch is seeded from (seed, epoch), so
that a run resumed from ``training_state.safetensors`` ends where an uninterrupted one does.
"""

import argparse
import math
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from timm.scheduler.scheduler import Scheduler
from timm.utils import distribute_bn, random_seed
from timm.utils.summary import trim_summary
from torch import Tensor, nn
from torch.optim import Optimizer
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from brevitas_multiquant import calibrate, cost
from recipes import report, run_folder
from recipes.data import (
    EvalBatches,
    Shard,
    StreamedBatches,
    TrainBatches,
    epoch_seed,
    eval_batches,
    train_batches,
)
from recipes.data_options import DataOptions
from recipes.errors import TrainingError, exit_code
from recipes.evaluate import top1
from recipes.networks import FLOAT_BITS, choose_num_classes, create_network, create_task
from recipes.optimizers import create_optimizers, create_scheduler
from recipes.options import parse_train
from recipes.state import STATE_FILE, SavedState, save_state


@dataclass
class Run:
    """Everything that a run holds while it trains."""

    args: argparse.Namespace
    accelerator: Accelerator
    folder: Path
    net: nn.Module
    task: nn.Module
    optimizers: list[Optimizer]
    schedulers: list[Scheduler]
    train: TrainBatches | StreamedBatches
    val: EvalBatches | StreamedBatches
    progress: dict[str, Any] = field(default_factory=lambda: {"epoch": 0, "best": -1.0})

    @property
    def bits(self) -> tuple[int, ...]:
        """The bit-widths that are evaluated; 32 stands for the float baseline."""
        return (FLOAT_BITS,) if self.args.float else self.net.bits


def create_run(args: argparse.Namespace) -> Run:
    """Data, network, task, optimizers and schedules, as new or as a saved state has them.

    Raises:
        ExperimentExistsError: a new run into a folder that holds something already.
        MissingFileError, TrainingError: no state to resume from, or that of another network.
    """
    folder = Path(args.output) / (args.experiment or args.model.replace("/", "_"))
    saved = None
    if args.resume is None:
        run_folder.require_new(folder, args.overwrite)
    else:
        saved = SavedState.read(folder / STATE_FILE)
    accelerator = Accelerator(mixed_precision="bf16" if args.amp else "no")
    options = DataOptions.from_args(args)
    shard = Shard(accelerator.process_index, accelerator.num_processes, accelerator.device)
    train, val = train_batches(options, shard), eval_batches(options, shard)
    random_seed(args.seed)
    net = create_network(args, choose_num_classes(args, train.num_classes)).to(accelerator.device)
    if args.channels_last:
        net = net.to(memory_format=torch.channels_last)
    if saved is not None:
        saved.restore_network(net)
    elif not args.float:
        calibrate(net, train, batches=1)
    optimizers = create_optimizers(args, net)
    schedulers = [create_scheduler(args, optimizer, len(train)) for optimizer in optimizers]
    task, *optimizers = accelerator.prepare(create_task(args, net), *optimizers)
    run = Run(args, accelerator, folder, net, task, optimizers, schedulers, train, val)
    if saved is not None:
        saved.restore_optimizers(optimizers)
        run.progress = saved.progress
    return run


def train_step(run: Run, images: Tensor, labels: Tensor) -> Tensor:
    """One step of all optimizers; the detached loss."""
    if run.args.channels_last:
        images = images.contiguous(memory_format=torch.channels_last)
    for optimizer in run.optimizers:
        optimizer.zero_grad()
    if run.accelerator.num_processes == 1:
        # One backward a bit-width: the same gradients at a third of the memory.
        with run.accelerator.autocast():
            loss = run.task.step(images, labels, run.accelerator.backward)["loss"]
    else:
        # All bit-widths in one forward: gradients are exchanged between processes only once.
        loss = run.task(images, labels)["loss"]
        run.accelerator.backward(loss)
    for optimizer in run.optimizers:
        optimizer.step()
    return loss.detach()


def train_epoch(run: Run, epoch: int, bar: tqdm) -> float:
    """Train for an epoch; the mean loss over all steps and processes.

    Raises:
        TrainingError: the loss is no longer finite.
    """
    random_seed(epoch_seed(run.args.seed, epoch), run.accelerator.process_index)
    run.train.set_epoch(epoch)
    run.task.train()
    total = torch.zeros((), device=run.accelerator.device)
    for step, (images, labels) in enumerate(run.train, start=1):
        total += train_step(run, images, labels)
        for scheduler in run.schedulers:
            scheduler.step_update(epoch * len(run.train) + step)
        if step % run.args.log_interval == 0:
            bar.set_postfix(epoch=epoch + 1, loss=f"{total.item() / step:.3f}", refresh=False)
        bar.update()
    if run.accelerator.num_processes > 1:
        # Each process has normalised its own images: without this, each would evaluate another net.
        distribute_bn(run.net, run.accelerator.num_processes, reduce=True)
    loss = run.accelerator.reduce(total / len(run.train), "mean").item()
    if not math.isfinite(loss):
        raise TrainingError(
            f"expected a finite loss, got {loss} in epoch {epoch + 1}: lower --lr "
            f"{run.args.lr} or add --warmup-epochs; the last good state is in {run.folder}"
        )
    return loss


def fit(run: Run) -> dict[int, float]:
    """Train from the epoch in ``run.progress`` to the last; top-1 a bit-width at the end."""
    accuracy: dict[int, float] = {}
    first, steps = run.progress["epoch"], len(run.train)
    with tqdm(
        total=run.args.epochs * steps,
        initial=first * steps,
        desc="train",
        mininterval=1 if sys.stderr.isatty() else 30,
        disable=not run.accelerator.is_main_process,
    ) as bar:
        for epoch in range(first, run.args.epochs):
            started = time.perf_counter()
            rate = run.optimizers[0].param_groups[0]["lr"]
            loss = train_epoch(run, epoch, bar)
            seconds = time.perf_counter() - started
            for scheduler in run.schedulers:
                scheduler.step(epoch + 1)
            accuracy = top1(run.net, run.val, run.bits, run.accelerator)
            if run.accelerator.is_main_process:
                report.append_summary(run.folder, epoch, loss, accuracy, rate, seconds)
                bar.write(epoch_line(epoch, run.args.epochs, loss, accuracy, seconds))
            save_progress(run, epoch + 1, accuracy)
    return accuracy or top1(run.net, run.val, run.bits, run.accelerator)


def epoch_line(
    epoch: int, epochs: int, loss: float, accuracy: Mapping[int, float], seconds: float
) -> str:
    """What is printed after an epoch."""
    parts = ", ".join(f"{bit} bits {value:.2f}" for bit, value in accuracy.items())
    return f"epoch {epoch + 1}/{epochs}: loss {loss:.3f}; top-1 % {parts}; {seconds:.1f} s"


def save_progress(run: Run, epochs_done: int, accuracy: Mapping[int, float]) -> None:
    """Write the training state and the last network, and the best by mean top-1."""
    mean = sum(accuracy.values()) / len(accuracy)
    improved = mean > run.progress["best"]
    run.progress = {"epoch": epochs_done, "best": max(mean, run.progress["best"])}
    if run.accelerator.is_main_process:
        if improved:
            run_folder.save_network(run.net, run.folder / run_folder.BEST_FILE)
        run_folder.save_network(run.net, run.folder / run_folder.LAST_FILE)
        save_state(run.folder / STATE_FILE, run.net, run.optimizers, run.progress)
    run.accelerator.wait_for_everyone()


def start(run: Run) -> None:
    """Prepare the folder: a new run writes its options, a resumed one keeps the rows it has."""
    if run.accelerator.is_main_process:
        run.folder.mkdir(parents=True, exist_ok=True)
        if run.args.resume is None:
            run_folder.clear(run.folder)
            report.save_args(run.args, run.folder)
        else:
            trim_summary(run.folder / run_folder.SUMMARY_FILE, run.progress["epoch"])
    run.accelerator.wait_for_everyone()


def finish(run: Run, accuracy: Mapping[int, float]) -> None:
    """Draw the plots and print the table."""
    costs = None
    report.plot_learning_curves(run.folder, run.bits, run.args.model)
    if not run.args.float:
        costs = cost(run.net, (1, 3, run.args.img_size, run.args.img_size))
        report.plot_accuracy_cost(run.folder, accuracy, costs, run.args.model)
    print(report.result_table(accuracy, costs))
    print(f"results in {run.folder}")


def train(args: argparse.Namespace) -> dict[int, float]:
    """Train as the options say; top-1 in percent a bit-width of the last epoch."""
    run = create_run(args)
    start(run)
    accuracy = fit(run)
    if run.accelerator.is_main_process:
        finish(run, accuracy)
    run.accelerator.end_training()
    return accuracy


def main(argv: Sequence[str] | None = None) -> int:
    """Run the recipe; 0 for success, 2 for wrong usage, 1 for any other named error."""
    return exit_code(lambda: train(parse_train(argv)))


if __name__ == "__main__":
    sys.exit(main())
