"""Train one network for every bit-width: ``accelerate launch recipes/train.py -c CONFIG.yaml``.

A run is a function of its options: whatever is random in an epoch is seeded from (seed, epoch), so
that a run resumed from ``training_state.safetensors`` ends where an uninterrupted one does.
"""

import argparse
import json
import math
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import timm
import torch
import torchvision
from accelerate import Accelerator
from safetensors import safe_open
from safetensors.torch import save_file
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.scheduler.scheduler import Scheduler
from timm.utils import random_seed
from timm.utils.summary import trim_summary
from torch import Tensor, nn
from torch.optim import Optimizer
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from brevitas_multiquant import InPlaceDistillation, calibrate, cost, multiquantize, save_packed
from brevitas_multiquant.errors import MultiQuantError
from brevitas_multiquant.source import ModelSource
from recipes import report
from recipes.data import (
    DataOptions,
    EvalBatches,
    MissingFileError,
    Shard,
    StreamedBatches,
    TrainBatches,
    epoch_seed,
    eval_batches,
    train_batches,
)
from recipes.evaluate import top1
from recipes.options import OptionError, exit_code, parse_train

STATE_FILE = "training_state.safetensors"
FLOAT_BITS = 32


class TrainingError(MultiQuantError):
    """A run that cannot go on."""


class FloatTask(nn.Module):
    """The float baseline behind the interface of `InPlaceDistillation`: plain cross-entropy."""

    def __init__(self, net: nn.Module, criterion: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.criterion = criterion

    def forward(self, images: Tensor, target: Tensor) -> dict[str, Any]:
        """``loss`` and ``outputs`` of a batch."""
        logits = self.net(images)
        loss = self.criterion(logits, target)
        return {"loss": loss, "outputs": {FLOAT_BITS: logits}}

    def step(
        self, images: Tensor, target: Tensor, backward: Callable[[Tensor], None]
    ) -> dict[str, Any]:
        """The same, after ``backward(loss)``."""
        parts = self(images, target)
        backward(parts["loss"])
        return parts


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


def model_source(args: argparse.Namespace, num_classes: int) -> ModelSource:
    """Library, name and arguments of the float model that the options ask for."""
    kwargs = {**dict(args.model_kwargs), "num_classes": num_classes}
    for prefix in ("tv:", "torchvision/"):
        if args.model.startswith(prefix):
            return ModelSource("torchvision", args.model.removeprefix(prefix), kwargs)
    return ModelSource("timm", args.model.removeprefix("timm/"), kwargs)


def create_float_model(source: ModelSource, pretrained: bool, checkpoint: str | None) -> nn.Module:
    """The float model, with published weights or those of a file where asked for.

    Raises:
        OptionError: an unknown model, or arguments that it does not take.
        MissingFileError: no such checkpoint.
    """
    if checkpoint is not None and not Path(checkpoint).is_file():
        raise MissingFileError(f"--initial-checkpoint: expected a file, found none at {checkpoint}")
    try:
        if not pretrained:
            model = source.build()
        elif source.library == "torchvision":
            model = torchvision.models.get_model(source.name, weights="DEFAULT", **source.kwargs)
        else:
            model = timm.create_model(source.name, pretrained=True, **source.kwargs)
        if checkpoint is not None:
            timm.models.load_checkpoint(model, checkpoint)
    except (KeyError, RuntimeError, TypeError, ValueError) as error:
        raise OptionError(
            f"--model {source.name}: {source.library} cannot create it with {source.kwargs}"
            f"{' and published weights' if pretrained else ''}: {error}"
        ) from error
    return model


def create_network(args: argparse.Namespace, num_classes: int) -> nn.Module:
    """The network to train: multi-branch, or with ``--float`` the float model itself."""
    source = model_source(args, num_classes)
    model = create_float_model(source, args.pretrained, args.initial_checkpoint)
    if args.float:
        return model
    trained = args.pretrained or args.initial_checkpoint is not None
    return multiquantize(
        model,
        args.bits,
        selection=args.selection,
        merge=args.merge,
        branch_init=args.branch_init or ("copy" if trained else "shuffle"),
        input_shape=(1, 3, args.img_size, args.img_size),
        source=source,
        seed=args.seed,
    )


def create_task(args: argparse.Namespace, net: nn.Module) -> nn.Module:
    """The training task: images and labels to a loss."""
    criterion = nn.CrossEntropyLoss(label_smoothing=args.smoothing)
    if args.float:
        return FloatTask(net, criterion)
    return InPlaceDistillation(
        net, loss=args.distill_loss, distill=not args.no_distill, criterion=criterion
    )


def create_optimizers(args: argparse.Namespace, net: nn.Module) -> list[Optimizer]:
    """SGD with decay for every model parameter, Adam without for the ranges (section 4.1)."""
    parameters = list(net.parameters() if args.float else net.model_parameters())
    optimizers = [
        create_optimizer_v2(
            parameters,
            opt="sgd",
            lr=args.lr,
            momentum=args.momentum,
            weight_decay=args.weight_decay,
            nesterov=False,
        )
    ]
    if not args.float:
        ranges = list(net.range_parameters())
        optimizers.append(create_optimizer_v2(ranges, opt="adam", lr=args.range_lr))
    return optimizers


def create_scheduler(args: argparse.Namespace, optimizer: Optimizer, steps: int) -> Scheduler:
    """The same schedule, scaled, for either optimizer; ``steps`` is the number in an epoch."""
    own_lr = optimizer.param_groups[0]["lr"]
    # timm lowers the rate one epoch before a milestone; the paper trains whole epochs up to it.
    shift = 0 if args.sched_on_updates else 1
    scheduler, _ = create_scheduler_v2(
        optimizer,
        sched="multistep" if args.sched == "step" else args.sched,
        num_epochs=args.epochs,
        decay_milestones=[milestone + shift for milestone in args.decay_milestones],
        decay_rate=args.decay_rate,
        min_lr=args.min_lr * own_lr / args.lr,
        warmup_lr=own_lr / 100,
        warmup_epochs=args.warmup_epochs,
        step_on_epochs=not args.sched_on_updates,
        updates_per_epoch=steps,
    )
    return scheduler


def create_run(args: argparse.Namespace) -> Run:
    """Data, network, task, optimizers and schedules, as new or as a saved state has them.

    Raises:
        MissingFileError, TrainingError: no state to resume from, or that of another network.
    """
    folder = Path(args.output) / (args.experiment or args.model.replace("/", "_"))
    saved = None if args.resume is None else SavedState.read(folder / STATE_FILE)
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


def choose_num_classes(args: argparse.Namespace, found: int) -> int:
    """``--num-classes``, or as many as the training images have.

    Raises:
        OptionError: fewer asked for than the images have, or none known.
    """
    if args.num_classes is None and found == 0:
        raise OptionError("--num-classes: this data set does not tell its classes; give the number")
    if args.num_classes is not None and args.num_classes < found:
        raise OptionError(
            f"--num-classes: expected at least the {found} classes of the training images, "
            f"got {args.num_classes}"
        )
    return args.num_classes or found


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
            save_network(run, "best.safetensors")
        save_network(run, "last.safetensors")
        save_state(run.folder / STATE_FILE, run.net, run.optimizers, run.progress)
    run.accelerator.wait_for_everyone()


def save_network(run: Run, name: str) -> None:
    """The multi-branch network packed; the float baseline as ``--initial-checkpoint`` reads it."""
    path = run.folder / name
    if not run.args.float:
        save_packed(run.net, path)
        return
    aside = path.with_suffix(".partial")
    save_file({key: value.contiguous() for key, value in run.net.state_dict().items()}, aside)
    os.replace(aside, path)


def save_state(
    path: Path, net: nn.Module, optimizers: Sequence[Optimizer], progress: Mapping[str, Any]
) -> None:
    """All that a resumed run needs, in one safetensors file that replaces the former at once."""
    tensors = {f"net.{name}": value for name, value in net.state_dict().items()}
    groups = []
    for index, optimizer in enumerate(optimizers):
        state = optimizer.state_dict()
        groups.append(state["param_groups"])
        for parameter, values in state["state"].items():
            for name, value in values.items():
                if value is not None:
                    tensors[f"optimizer{index}.{parameter}.{name}"] = value
    # Copies, because safetensors refuses tensors that share memory.
    tensors = {
        name: value.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, value in tensors.items()
    }
    metadata = {"progress": json.dumps(dict(progress)), "param_groups": json.dumps(groups)}
    aside = path.with_suffix(".partial")
    save_file(tensors, aside, metadata)
    os.replace(aside, path)


@dataclass(frozen=True)
class SavedState:
    """A training state read back: tensors by name, param groups of each optimizer, progress."""

    path: Path
    tensors: dict[str, Tensor]
    param_groups: list[list[dict[str, Any]]]
    progress: dict[str, Any]

    @classmethod
    def read(cls, path: Path) -> "SavedState":
        """What `save_state` wrote.

        Raises:
            MissingFileError: there is no such file.
        """
        if not path.is_file():
            raise MissingFileError(f"--resume: expected a training state at {path}, found none")
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            metadata = file.metadata()
        groups, progress = (json.loads(metadata[key]) for key in ("param_groups", "progress"))
        return cls(path, tensors, groups, progress)

    def below(self, prefix: str) -> dict[str, Tensor]:
        """The tensors whose names start with ``prefix``, without it."""
        named = self.tensors.items()
        return {k.removeprefix(prefix): v for k, v in named if k.startswith(prefix)}

    def restore_network(self, net: nn.Module) -> None:
        """Load the network; before its optimizers are made, as loading may replace parameters.

        Raises:
            TrainingError: it is the state of another network.
        """
        try:
            net.load_state_dict(self.below("net."))
        except RuntimeError as error:
            raise TrainingError(
                f"--resume: {self.path} holds another network than the options describe; resume "
                f"with the options of that run: {error}"
            ) from None

    def restore_optimizers(self, optimizers: Sequence[Optimizer]) -> None:
        """Load the optimizers of the restored network."""
        pairs = zip(optimizers, self.param_groups, strict=True)
        for index, (optimizer, groups) in enumerate(pairs):
            state: dict[int, dict[str, Tensor]] = {}
            for name, value in self.below(f"optimizer{index}.").items():
                parameter, key = name.split(".")
                state.setdefault(int(parameter), {})[key] = value
            optimizer.load_state_dict({"state": state, "param_groups": groups})


def start(run: Run) -> None:
    """Prepare the folder: a new run writes its options, a resumed one keeps the rows it has."""
    if run.accelerator.is_main_process:
        run.folder.mkdir(parents=True, exist_ok=True)
        trim_summary(run.folder / "summary.csv", run.progress["epoch"])
        if run.args.resume is None:
            report.save_args(run.args, run.folder)
            (run.folder / "summary.csv").unlink(missing_ok=True)
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
