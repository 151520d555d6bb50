"""Everything a run holds while it trains, and the checkpoint of it."""

import shlex
from dataclasses import asdict, dataclass, field
from pathlib import Path

from accelerate import Accelerator
from timm.scheduler.scheduler import Scheduler
from timm.utils import ModelEmaV3
from torch import nn
from torch.optim import Optimizer

from brevitas_multiquant.core.image_task import ImageTask
from brevitas_multiquant.recipes.data.batches import Eval, Train
from brevitas_multiquant.recipes.errors import NonFiniteError
from brevitas_multiquant.recipes.network.health import non_finite_tensor
from brevitas_multiquant.recipes.network.trainee import Trainee
from brevitas_multiquant.recipes.options.option import PROGRAM
from brevitas_multiquant.recipes.options.train import TrainOptions
from brevitas_multiquant.recipes.results.checkpoints import (
    Checkpoint,
    checkpoint_path,
    write_checkpoint,
)
from brevitas_multiquant.recipes.results.image_task import image_task_of
from brevitas_multiquant.recipes.results.state import network_tensors, optimizer_tensors
from brevitas_multiquant.recipes.run.step import Step

RECIPES = "brevitas_multiquant.recipes"
LAUNCH = "accelerate launch --num_processes"
LAUNCH_ON_CPU = "ACCELERATE_USE_CPU=true torchrun --nproc_per_node"
"""What starts several processes; `accelerate launch` starts one on a CPU."""


@dataclass
class Progress:
    """Where a run is.

    Args:
        epoch: epochs done.
        step: updates done in the epoch after them.
        loss_sum: of those updates.
        seconds: they took.
        best: highest mean top-1 so far, in percent.
        history: a row of results for each epoch done.
    """

    epoch: int = 0
    step: int = 0
    loss_sum: float = 0.0
    seconds: float = 0.0
    best: float = -1.0
    history: list[dict[str, float]] = field(default_factory=list)


@dataclass
class Run:
    """Everything that a run holds while it trains."""

    options: TrainOptions
    accelerator: Accelerator
    folder: Path
    trainee: Trainee
    ema: ModelEmaV3 | None
    optimizers: list[Optimizer]
    schedulers: list[Scheduler]
    step: Step
    train: Train
    val: Eval
    progress: Progress

    @property
    def net(self) -> nn.Module:
        """The network that is trained."""
        return self.trainee.module

    @property
    def bits(self) -> tuple[int, ...]:
        """The bit-widths that are evaluated; 32 stands for the float baseline."""
        return self.trainee.bits

    @property
    def result(self) -> Trainee:
        """What is evaluated and kept: the moving average where there is one."""
        return self.trainee if self.ema is None else self.trainee.of(self.ema.module)

    @property
    def image_task(self) -> ImageTask:
        """What the network is for, and how good it is after the epochs that are done."""
        data, classes = self.options.data, self.step.num_classes
        return image_task_of(data, self.val, classes, self.progress.history)

    @property
    def resume_command(self) -> str:
        """What goes on from the newest checkpoint, with as many processes."""
        program, count = self.options.program, self.accelerator.num_processes
        start = f"{PROGRAM} {program}"
        if count > 1:
            on_cpu = self.accelerator.device.type == "cpu"
            start = f"{LAUNCH_ON_CPU if on_cpu else LAUNCH} {count} -m {RECIPES}.{program}"
        return f"{start} --resume {shlex.quote(str(self.folder))}"

    @property
    def steps(self) -> int:
        """Updates in an epoch."""
        return len(self.train) // self.options.execution.grad_accum_steps

    @property
    def rate(self) -> float:
        """The model's present learning rate."""
        return self.optimizers[0].param_groups[0]["lr"]

    @property
    def images_per_step(self) -> int:
        """Over all processes."""
        batches = self.options.execution.grad_accum_steps * self.accelerator.num_processes
        return self.options.data.batch_size * batches


def state_of(run: Run) -> Checkpoint:
    """All that a resumed run needs."""
    tensors = network_tensors("net.", run.net)
    if run.ema is not None:
        tensors |= network_tensors("ema.", run.ema.module)
    tensors |= optimizer_tensors(run.optimizers)
    groups = [optimizer.state_dict()["param_groups"] for optimizer in run.optimizers]
    values = {"progress": asdict(run.progress), "param_groups": groups}
    values["image_task"] = run.image_task.to_dict()
    return Checkpoint(tensors, values | run.trainee.saved_values())


def save_checkpoint(run: Run) -> None:
    """Write a checkpoint of the present state; the main process does it.

    Raises:
        NonFiniteError: a parameter is not finite; nothing is written.
        OutputError: it cannot be written.
    """
    if name := non_finite_tensor(run.net):
        lr = run.options.optimisation.lr
        raise NonFiniteError(
            f"expected finite parameters, got {name} that is not after epoch "
            f"{run.progress.epoch}, step {run.progress.step}: lower --lr {lr}; the last "
            "good checkpoint stands"
        )
    if run.accelerator.is_main_process:
        path = checkpoint_path(run.folder, run.progress.epoch, run.progress.step)
        write_checkpoint(path, state_of(run), keep=run.options.output.checkpoint_hist)
    run.accelerator.wait_for_everyone()
