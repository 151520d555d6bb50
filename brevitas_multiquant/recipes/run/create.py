"""A run made from the options, as new or as its newest checkpoint has it."""

import argparse
from pathlib import Path

import torch
from accelerate import Accelerator
from timm.utils import ModelEmaV3, random_seed
from torch import nn

from brevitas_multiquant import MultiQuantNet, calibrate
from brevitas_multiquant.recipes.data.batches import Eval, Train, eval_batches, train_batches
from brevitas_multiquant.recipes.data.shard import Shard
from brevitas_multiquant.recipes.data.sources import check_splits_differ
from brevitas_multiquant.recipes.errors import DatasetError, OptionError
from brevitas_multiquant.recipes.options.data import DataOptions
from brevitas_multiquant.recipes.options.parsers import parse, train_parser
from brevitas_multiquant.recipes.run import processes, run_folder
from brevitas_multiquant.recipes.run.checkpoints import (
    Checkpoint,
    latest_checkpoint,
)
from brevitas_multiquant.recipes.run.networks import choose_num_classes, create_network, create_task
from brevitas_multiquant.recipes.run.optimizers import create_optimizers, create_scheduler, go_on
from brevitas_multiquant.recipes.run.resuming import check_same_network
from brevitas_multiquant.recipes.run.run import Progress, Run
from brevitas_multiquant.recipes.run.state import (
    restore_network,
    restore_optimizers,
)
from brevitas_multiquant.recipes.run.step import Step
from brevitas_multiquant.recipes.run.tracking import require_tracker


def run_path(args: argparse.Namespace) -> Path:
    """The folder that the options give to a run."""
    return Path(args.output) / (args.experiment or args.model.replace("/", "_"))


def create_run(args: argparse.Namespace) -> Run:
    """Data, network, optimizers and schedules, as new or as the newest checkpoint has them.

    Raises:
        ExperimentExistsError: a new run into a folder that holds something already.
        MissingFileError, CheckpointError: nothing to resume from, damaged, or of another network.
        MissingPackageError: of a tracker.
        LaunchError, OptionError: processes that were not started, or that the recipe cannot use.
    """
    folder = run_path(args)
    saved = open_folder(args, folder)
    accelerator = create_accelerator(args, folder)
    train, val = create_batches(args, accelerator)
    random_seed(args.seed)
    num_classes = choose_num_classes(args, train.num_classes)
    net = create_network(args, num_classes).to(accelerator.device)
    if args.channels_last:
        net = net.to(memory_format=torch.channels_last)
    if saved is not None:
        restore_network(net, saved, "net.")
    elif isinstance(net, MultiQuantNet):
        calibrate(net, train.epoch(0), batches=1)
    processes.share_from_main(net)
    ema = create_ema(args, net)
    optimizers = create_optimizers(args, net)
    steps = len(train) // args.grad_accum_steps
    schedulers = [create_scheduler(args, optimizer, steps) for optimizer in optimizers]
    if saved is not None:
        if ema is not None:
            restore_network(ema.module, saved, "ema.")
        # After the schedules, which set the rates of a first step.
        restore_optimizers(optimizers, saved)
    step = Step(args, accelerator, create_task(args, net), optimizers, ema, num_classes)
    progress = Progress() if saved is None else Progress(**saved.values["progress"])
    for scheduler in schedulers:  # by the options given now
        go_on(scheduler, progress.epoch, progress.epoch * steps + progress.step)
    return Run(
        args, accelerator, folder, net, ema, optimizers, schedulers, step, train, val, progress
    )


def open_folder(args: argparse.Namespace, folder: Path) -> Checkpoint | None:
    """The checkpoint to go on from; None for a run from the start, once its folder is free.

    Raises:
        ExperimentExistsError, MissingFileError, CheckpointError: as `create_run`.
    """
    if args.resume is not None:
        newest = latest_checkpoint(folder)
        check_same_network(args, parse(train_parser(), [], below=folder / "args.yaml"))
        return newest
    if not args.dry_run:
        run_folder.require_new(folder, args.overwrite)
    return None


def create_accelerator(args: argparse.Namespace, folder: Path) -> Accelerator:
    """Processes, device, arithmetic and tracker.

    Raises:
        MissingPackageError, LaunchError, OptionError: as `create_run`.
    """
    require_tracker(args.log_with)
    try:
        accelerator = Accelerator(
            cpu=args.device == "cpu",
            mixed_precision=args.amp,
            log_with=args.log_with,
            project_dir=str(folder) if args.log_with else None,
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


def create_batches(args: argparse.Namespace, accelerator: Accelerator) -> tuple[Train, Eval]:
    """The training and validation batches of this process.

    Raises:
        DatasetError: fewer training images than one update takes; one split for both.
    """
    options = DataOptions.from_args(args)
    shard = Shard(accelerator.process_index, accelerator.num_processes, accelerator.device)
    check_splits_differ(options)
    train = train_batches(options, shard)
    if len(train) < args.grad_accum_steps:
        raise DatasetError(
            f"--grad-accum-steps: expected at most the {len(train)} batches of an epoch, got "
            f"{args.grad_accum_steps}"
        )
    return train, eval_batches(options, shard, train)


def create_ema(args: argparse.Namespace, net: nn.Module) -> ModelEmaV3 | None:
    """A moving average of parameters, ranges and running statistics, where asked for."""
    if not args.model_ema:
        return None
    return ModelEmaV3(net, decay=args.model_ema_decay, use_warmup=args.model_ema_warmup)
