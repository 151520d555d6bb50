"""A run made from the options, as new or as its newest checkpoint has it."""

from collections.abc import Callable
from pathlib import Path

import torch
from accelerate import Accelerator
from timm.utils import ModelEmaV3, random_seed
from torch import nn

from brevitas_multiquant.recipes.data.batches import Eval, Train, eval_batches, train_batches
from brevitas_multiquant.recipes.data.shard import Shard
from brevitas_multiquant.recipes.data.sources import check_splits_differ
from brevitas_multiquant.recipes.errors import DatasetError, OptionError
from brevitas_multiquant.recipes.network.build import choose_num_classes, create_network
from brevitas_multiquant.recipes.network.optimizers import (
    create_optimizers,
    create_scheduler,
    go_on,
)
from brevitas_multiquant.recipes.network.trainee import Trainee
from brevitas_multiquant.recipes.options.data import DataOptions
from brevitas_multiquant.recipes.options.resuming import check_same_network, options_saved_in
from brevitas_multiquant.recipes.options.train import TrainOptions
from brevitas_multiquant.recipes.options.training import AverageOptions
from brevitas_multiquant.recipes.results import run_folder
from brevitas_multiquant.recipes.results.checkpoints import Checkpoint, latest_checkpoint
from brevitas_multiquant.recipes.results.state import restore_network, restore_optimizers
from brevitas_multiquant.recipes.run import processes
from brevitas_multiquant.recipes.run.run import Progress, Run
from brevitas_multiquant.recipes.run.step import Step
from brevitas_multiquant.recipes.run.tracking import require_tracker

Prepare = Callable[[Trainee], None]
"""Moves what is trained to its device, and sets its ranges, the same in all processes."""

Make = Callable[[TrainOptions, int, Checkpoint | None, Prepare], Trainee]
"""Options, number of classes, the checkpoint to go on from, what prepares a network, for those that
have to look into one -> what is trained."""


def trainee_of(
    options: TrainOptions, num_classes: int, saved: Checkpoint | None, prepare: Prepare
) -> Trainee:
    """What ``train`` trains."""
    return create_network(options.model, num_classes, options.data.img_size, options.data.seed)


def create_run(options: TrainOptions, make: Make = trainee_of, make_step: type[Step] = Step) -> Run:
    """Data, network, optimizers and schedules, as new or as the newest checkpoint has them.

    Args:
        options: of the run.
        make: makes what is trained.
        make_step: makes what updates it.

    Raises:
        ExperimentExistsError: a new run into a folder that holds something already.
        MissingFileError, CheckpointError: nothing to resume from, damaged, or of another network.
        MissingPackageError: of a tracker.
        LaunchError, OptionError: processes that were not started, or that the recipe cannot use.
    """
    data, execution, rates = options.data, options.execution, options.optimisation
    saved = open_folder(options)
    accelerator = create_accelerator(
        options.device.device, execution.amp, options.output.log_with, options.folder
    )
    train, val = create_batches(data, execution.grad_accum_steps, accelerator)
    random_seed(data.seed)
    num_classes = choose_num_classes(data.num_classes, train.num_classes)

    def prepare(made: Trainee, calibrating: bool = True) -> None:
        made.module.to(accelerator.device)
        if execution.channels_last:
            made.module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if calibrating:
            made.calibrate(train.epoch(0))
        processes.share_from_main(made.module)

    trainee = make(options, num_classes, saved, prepare)
    prepare(trainee, calibrating=saved is None)
    net = trainee.module
    if saved is not None:
        restore_network(net, saved, "net.")
    ema = create_ema(options.average, net)
    optimizers = create_optimizers(rates, trainee)
    steps = len(train) // execution.grad_accum_steps
    schedulers = [create_scheduler(rates, optimizer, steps) for optimizer in optimizers]
    if saved is not None:
        if ema is not None:
            restore_network(ema.module, saved, "ema.")
        # After the schedules, which set the rates of a first step.
        restore_optimizers(optimizers, saved)
    task = trainee.task(
        nn.CrossEntropyLoss(label_smoothing=options.targets.smoothing), options.objective
    )
    step = make_step(options, accelerator, trainee, task, optimizers, ema, num_classes)
    progress = Progress() if saved is None else Progress(**saved.values["progress"])
    for scheduler in schedulers:  # by the options given now
        go_on(scheduler, progress.epoch, progress.epoch * steps + progress.step)
    return Run(
        options,
        accelerator,
        options.folder,
        trainee,
        ema=ema,
        optimizers=optimizers,
        schedulers=schedulers,
        step=step,
        train=train,
        val=val,
        progress=progress,
    )


def open_folder(options: TrainOptions) -> Checkpoint | None:
    """The checkpoint to go on from; None for a run from the start, once its folder is free.

    Raises:
        ExperimentExistsError, MissingFileError, CheckpointError: as `create_run`.
    """
    if options.output.resume is not None:
        newest = latest_checkpoint(options.folder)
        check_same_network(options, options_saved_in(options.folder))
        return newest
    if not options.output.dry_run:
        run_folder.require_new(options.folder, options.output.overwrite)
    return None


def create_accelerator(
    device: str, amp: str | None, log_with: str | None, folder: Path
) -> Accelerator:
    """Processes, device, arithmetic and tracker.

    Raises:
        MissingPackageError, LaunchError, OptionError: as `create_run`.
    """
    require_tracker(log_with)
    try:
        accelerator = Accelerator(
            cpu=device == "cpu",
            mixed_precision=amp,
            log_with=log_with,
            project_dir=str(folder) if log_with else None,
        )
    except (ImportError, NotImplementedError, ValueError) as error:
        raise OptionError(
            f"Accelerate cannot run as its launcher or the options ask: {error}"
        ) from error
    processes.check_launch(accelerator)
    if accelerator.mixed_precision not in ("no", "bf16"):
        raise OptionError(
            f"expected mixed precision no or bf16, got {accelerator.mixed_precision} from "
            "accelerate launch; add --amp bf16"
        )
    return accelerator


def create_batches(
    options: DataOptions, grad_accum_steps: int, accelerator: Accelerator
) -> tuple[Train, Eval]:
    """The training and validation batches of this process.

    Raises:
        DatasetError: fewer training images than one update takes; one split for both.
    """
    shard = Shard(accelerator.process_index, accelerator.num_processes, accelerator.device)
    check_splits_differ(options)
    train = train_batches(options, shard)
    if len(train) < grad_accum_steps:
        raise DatasetError(
            f"--grad-accum-steps: expected at most the {len(train)} batches of an epoch, got "
            f"{grad_accum_steps}"
        )
    return train, eval_batches(options, shard, train)


def create_ema(options: AverageOptions, net: nn.Module) -> ModelEmaV3 | None:
    """A moving average of parameters, ranges and running statistics, where asked for."""
    if not options.model_ema:
        return None
    return ModelEmaV3(net, decay=options.model_ema_decay, use_warmup=options.model_ema_warmup)
