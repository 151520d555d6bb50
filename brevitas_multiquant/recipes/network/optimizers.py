"""Optimizers and learning rate schedules: one for the model, one for the quantizer ranges."""

from typing import Any

from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.scheduler.scheduler import Scheduler
from torch import nn
from torch.optim import Optimizer

from brevitas_multiquant.recipes.network.trainee import Trainee
from brevitas_multiquant.recipes.options.training import WITH_NESTEROV, OptimisationOptions


def create_optimizers(options: OptimisationOptions, net: Trainee) -> list[Optimizer]:
    """SGD or another with decay for model parameters, Adam without for the ranges (section 4.1)."""
    optimizers = [_model_optimizer(options, list(net.model_parameters()))]
    if ranges := list(net.range_parameters()):
        optimizers.append(create_optimizer_v2(ranges, opt="adam", lr=options.range_lr))
    return optimizers


def _model_optimizer(options: OptimisationOptions, parameters: list[nn.Parameter]) -> Optimizer:
    groups: list[Any] = parameters
    of_sgd: dict[str, Any] = {}
    if options.opt in WITH_NESTEROV:
        of_sgd["nesterov"] = options.nesterov
    if not options.decay_vectors:
        groups = [
            {"params": [p for p in parameters if p.dim() > 1]},
            {"params": [p for p in parameters if p.dim() <= 1], "weight_decay": 0.0},
        ]
    return create_optimizer_v2(
        groups,
        opt=options.opt,
        lr=options.lr,
        weight_decay=options.weight_decay,
        momentum=options.momentum,  # where it has one
        **of_sgd,
    )


def create_scheduler(options: OptimisationOptions, optimizer: Optimizer, steps: int) -> Scheduler:
    """The same schedule, scaled, for either optimizer; ``steps`` is the number in an epoch."""
    own_lr = optimizer.param_groups[0]["lr"]
    # timm lowers the rate one epoch before a milestone; the paper trains whole epochs up to it.
    shift = 0 if options.sched_on_updates else 1
    scheduler, _ = create_scheduler_v2(
        optimizer,
        sched=options.sched,
        num_epochs=options.epochs,
        decay_milestones=[milestone + shift for milestone in options.decay_milestones],
        decay_epochs=options.decay_epochs,
        decay_rate=options.decay_rate,
        min_lr=options.min_lr * own_lr / options.lr,
        warmup_lr=own_lr / 100,
        warmup_epochs=options.warmup_epochs,
        step_on_epochs=not options.sched_on_updates,
        updates_per_epoch=steps,
    )
    return scheduler


def go_on(scheduler: Scheduler, epoch: int, updates: int) -> None:
    """Set the rate of a run that has made so many epochs and updates, as its schedule did then."""
    if epoch:
        scheduler.step(epoch)
    if updates:
        scheduler.step_update(updates)
