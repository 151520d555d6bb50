"""Optimizers and learning rate schedules: one for the model, one for the quantizer ranges."""

import argparse

from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.scheduler.scheduler import Scheduler
from torch import nn
from torch.optim import Optimizer

from brevitas_multiquant import MultiQuantNet


def create_optimizers(args: argparse.Namespace, net: nn.Module) -> list[Optimizer]:
    """SGD with decay for every model parameter, Adam without for the ranges (section 4.1)."""
    parameters, ranges = list(net.parameters()), []
    if isinstance(net, MultiQuantNet):
        parameters, ranges = list(net.model_parameters()), list(net.range_parameters())
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
    if ranges:
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


def go_on(scheduler: Scheduler, epoch: int, updates: int) -> None:
    """Set the rate of a run that has made so many epochs and updates, as its schedule did then."""
    if epoch:
        scheduler.step(epoch)
    if updates:
        scheduler.step_update(updates)
