"""How to train: optimizers and their schedules, targets, a moving average, the objective."""

from dataclasses import dataclass
from typing import Any

from brevitas_multiquant.recipes.errors import OptionError
from brevitas_multiquant.recipes.options.option import SWITCH, option
from brevitas_multiquant.recipes.options.types import (
    fraction,
    not_negative,
    number_from_zero,
    positive,
    positive_number,
)
from brevitas_multiquant.training.objective import TAUGHT_BY

OPTIMIZERS = (
    *("sgd", "adam", "adamax", "adamw", "adopt", "lion"),
    *("nadamw", "radam", "rmsprop", "rmsproptf", "sgdw"),
)
"""Of timm, by its names: those that remember nothing but tensors, which checkpoints keep."""

WITH_NESTEROV = ("sgd", "sgdw")
WITH_MOMENTUM = (*WITH_NESTEROV, "rmsprop", "rmsproptf")
"""Those that take the option."""

SCHEDULES = ("cosine", "tanh", "step", "multistep", "poly")
"""Of timm, by its names: those that are a function of the time alone."""


@dataclass(frozen=True)
class OptimisationOptions:
    """Optimizers, and their learning rates over the epochs."""

    epochs: int = option(200, positive, "passes over the training images")
    opt: str = option("sgd", choices=OPTIMIZERS, help="of timm; all parameters but the ranges")
    lr: float = option(0.1, positive_number, "of that optimizer")
    momentum: float = option(0.9, fraction, f"of {', '.join(WITH_MOMENTUM)}")
    nesterov: bool = option(
        False, action=SWITCH, help=f"momentum that looks ahead, of {', '.join(WITH_NESTEROV)}"
    )
    weight_decay: float = option(1e-4, number_from_zero, "of all parameters but the ranges")
    decay_vectors: bool = option(True, action=SWITCH, help="decay norms and biases too")
    clip_grad: float | None = option(
        type=positive_number, metavar="MOST", help="of gradients of that optimizer (default: none)"
    )
    clip_mode: str = option("norm", choices=["norm", "value"], help="what --clip-grad limits")
    range_lr: float = option(1e-4, positive_number, "Adam without decay, the ranges")
    sched: str = option("cosine", choices=SCHEDULES, help="of the learning rate, by timm's names")
    sched_on_updates: bool = option(False, help="change the rate at every step")
    decay_milestones: list[int] = option([100, 150], positive, "epochs, of multistep", nargs="+")
    decay_epochs: int | None = option(
        type=positive, metavar="N", help="epochs between two decays, of step"
    )
    decay_rate: float = option(0.1, positive_number, "factor of a decay; the power of poly")
    warmup_epochs: int = option(0, not_negative, "in which the rate rises to --lr")
    min_lr: float = option(0.0, number_from_zero, "last rate of cosine, tanh and poly")

    def check(self) -> None:
        """Check options against each other.

        Raises:
            OptionError: they do not go together, or one would say nothing.
        """
        if self.warmup_epochs >= self.epochs:
            raise OptionError(
                f"--warmup-epochs: expected fewer than the {self.epochs} epochs, got "
                f"{self.warmup_epochs}"
            )
        if self.min_lr > self.lr:
            raise OptionError(f"--min-lr: expected at most --lr {self.lr}, got {self.min_lr}")
        if self.sched == "step" and self.decay_epochs is None:
            raise OptionError(
                "--sched step: expected --decay-epochs N, the epochs between two decays; for "
                "--decay-milestones it is --sched multistep"
            )
        self._check_momentum()

    def _check_momentum(self) -> None:
        if self.nesterov and self.opt not in WITH_NESTEROV:
            raise OptionError(
                f"--nesterov: expected it with --opt {' or '.join(WITH_NESTEROV)}, got --opt "
                f"{self.opt}: add --no-nesterov"
            )
        if self.momentum != OptimisationOptions.momentum and self.opt not in WITH_MOMENTUM:
            raise OptionError(
                f"--momentum {self.momentum}: expected it with --opt {' or '.join(WITH_MOMENTUM)}, "
                f"got --opt {self.opt}, which has none: leave it out"
            )


@dataclass(frozen=True)
class TargetOptions:
    """What labels become: smoothed, or mixed with the images they belong to."""

    smoothing: float = option(0.0, fraction, "label smoothing")
    mixup: float = option(0.0, number_from_zero, "0: none", metavar="ALPHA")
    cutmix: float = option(0.0, number_from_zero, "0: none", metavar="ALPHA")
    mixup_off_epoch: int = option(0, not_negative, "none from here on", metavar="N")


@dataclass(frozen=True)
class AverageOptions:
    """A moving average of the network."""

    model_ema: bool = option(False, help="evaluate and keep a moving average")
    model_ema_decay: float = option(0.9998, fraction, "share that is kept at a step")
    model_ema_warmup: bool = option(False, help="average over fewer steps at the start")


@dataclass(frozen=True)
class ObjectiveOptions:
    """What bit-widths learn, and when."""

    no_distill: bool = option(False, help="cross-entropy only, at every bit-width")
    distill_loss: str | None = option(
        choices=["sum", "halved"], help="CE + KD (default) or its half, of multiquant"
    )
    teacher: str | None = option(
        choices=list(TAUGHT_BY), help="of any_precision (default recursive)"
    )
    uniform_share: float | None = option(
        type=fraction, help="of the epochs, that bit_mixer trains whole bit-widths (default 0.5)"
    )
    bits_per_step: float | None = option(
        type=positive_number, metavar="N", help="that run, on average"
    )
    quant_noise: float | None = option(
        type=positive_number,
        metavar="P",
        help="quantize a random share of the weights in each step (default: all)",
    )
    norm_batches: int | None = option(
        type=not_negative, metavar="N", help="renew norms before evaluation"
    )

    @property
    def of_task(self) -> dict[str, Any]:
        """What was asked of the training task, under the names that `objective_of` has."""
        asked: dict[str, Any] = {
            "distill": False if self.no_distill else None,
            "loss": self.distill_loss,
        }
        asked |= {"teacher": self.teacher, "uniform": self.uniform_share}
        return {name: value for name, value in asked.items() if value is not None}
