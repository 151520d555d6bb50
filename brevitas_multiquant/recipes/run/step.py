"""One step of all optimizers: the batches it takes, what processes exchange, what is checked."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from timm.data import Mixup
from timm.utils import ModelEmaV3, dispatch_clip_grad, random_seed
from torch import Tensor
from torch.optim import Optimizer

from brevitas_multiquant.recipes.data.seeds import derived_seed
from brevitas_multiquant.recipes.errors import NonFiniteError, OptionError
from brevitas_multiquant.recipes.network.health import first_fault
from brevitas_multiquant.recipes.network.protocols import Task
from brevitas_multiquant.recipes.network.trainee import Trainee
from brevitas_multiquant.recipes.network.training_forwards import running_by
from brevitas_multiquant.recipes.options.train import TrainOptions
from brevitas_multiquant.recipes.options.training import TargetOptions
from brevitas_multiquant.recipes.run import processes
from brevitas_multiquant.recipes.run.sampling import sampled_bits
from brevitas_multiquant.training.range_rates import scaled_rate
from brevitas_multiquant.training.task import BitWidthLoss

Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class StepResult:
    """Of one update: the mean loss over batches and processes; whether any was asked to stop."""

    loss: float
    stop: bool


class Turn(NamedTuple):
    """Gradients that one update of the optimizers takes.

    Args:
        loss: their loss, of this process.
        images: of the last batch.
        range_rate: the factor of the ranges' learning rate, once all processes have agreed on the
            gradients.
    """

    loss: float
    images: Tensor
    range_rate: Callable[[], float]


class Step:
    """Makes updates; whatever is random in one is a function of (seed, epoch, step, rank)."""

    def __init__(
        self,
        options: TrainOptions,
        accelerator: Accelerator,
        trainee: Trainee,
        task: Task,
        optimizers: Sequence[Optimizer],
        ema: ModelEmaV3 | None,
        num_classes: int,
    ) -> None:
        self.options, self.accelerator = options, accelerator
        self.trainee, self.task = trainee, task
        self.optimizers, self.ema = optimizers, ema
        self.num_classes = num_classes
        self.mixup = create_mixup(options.targets, options.data.batch_size, num_classes)
        how = options.execution
        self.forwards = trainee.training_forwards(how.compile, how.recompute)

    def __call__(
        self, batches: Sequence[Batch], epoch: int, step: int, updates: int, stop: bool = False
    ) -> StepResult:
        """One update; one for each bit-width where the method asks for that.

        Args:
            batches: images (B, 3, H, W) and labels (B,); their gradients are averaged.
            epoch: of the update, from 0.
            step: of the epoch, from 0.
            updates: made before in the whole run.
            stop: whether this process was asked to stop; all of them learn of it.

        Raises:
            NonFiniteError: the loss is not finite; no parameter was changed by it.
        """
        random_seed(self._seed(epoch, step, self.accelerator.process_index))
        self.task.at(epoch, self.options.optimisation.epochs, step, self.options.data.seed)
        bits = self._choose_bits(epoch, step)
        turns = self._after_each if self.task.updates_after_each else self._together
        total, stops = 0.0, 0.0
        for turn in turns(batches, epoch, bits):
            tensors = processes.exchanged(self.trainee.module)
            loss, stops = processes.average(tensors, [turn.loss, float(stop)])
            if not math.isfinite(loss):
                self._refuse(loss, turn.images, epoch, step)
            self._update(turn.range_rate)
            total += loss
        if self.ema is not None:
            self.ema.update(self.trainee.module, step=updates + 1)
        return StepResult(total, stops > 0)

    def _together(
        self, batches: Sequence[Batch], epoch: int, bits: Sequence[int] | None
    ) -> Iterator[Turn]:
        """All bit-widths of every batch, then one update."""
        self._clear()
        losses = []
        for images, labels in batches:
            images, target = self._augment(images, labels, epoch)
            losses.append(self._backward(images, target, bits, share=1 / len(batches)))
        yield Turn(torch.stack(losses).sum().item(), images, lambda: 1.0)

    def _after_each(
        self, batches: Sequence[Batch], epoch: int, bits: Sequence[int] | None
    ) -> Iterator[Turn]:
        """One bit-width of every batch, then an update, then the next one."""
        augmented = [self._augment(images, labels, epoch) for images, labels in batches]
        running = [self.task.losses(images, target, bits) for images, target in augmented]
        for bit in sorted(bits or self.trainee.bits, reverse=True):
            self._clear()
            losses = [self._backward_next(parts, share=1 / len(batches)) for parts in running]
            rate = partial(self.task.range_rate, bit)
            yield Turn(torch.stack(losses).sum().item(), augmented[-1][0], rate)

    def _clear(self) -> None:
        for optimizer in self.optimizers:
            optimizer.zero_grad()

    def _update(self, range_rate: Callable[[], float]) -> None:
        """Step the optimizer of the model, and that of the ranges at a part of its rate."""
        model, *of_ranges = self.optimizers
        factor = range_rate()
        rates = self.options.optimisation
        if rates.clip_grad is not None:
            clipped = self.trainee.model_parameters()
            dispatch_clip_grad(list(clipped), rates.clip_grad, mode=rates.clip_mode)
        model.step()
        for ranges in of_ranges:
            with scaled_rate(ranges, factor):
                ranges.step()

    def _choose_bits(self, epoch: int, step: int) -> tuple[int, ...] | None:
        count = self.options.objective.bits_per_step
        if count is None:
            return None
        return sampled_bits(self.trainee.bits, count, self._seed(epoch, step))

    def _seed(self, *place: int) -> int:
        return derived_seed(self.options.data.seed, *place)

    def _augment(self, images: Tensor, labels: Tensor, epoch: int) -> Batch:
        off = self.options.targets.mixup_off_epoch
        if self.mixup is not None and (not off or epoch < off):
            images, labels = self.mixup(images, labels)
        if self.options.execution.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        return images, labels

    def _backward(
        self, images: Tensor, target: Tensor, bits: Sequence[int] | None, share: float
    ) -> Tensor:
        """Gradients of ``share`` times the loss, a bit-width at a time; that loss."""
        with running_by(self.forwards), self.accelerator.autocast():
            result = self.task.step(images, target, scaled_backward(share), bits)
        return result["loss"].detach() * share

    def _backward_next(self, parts: Iterator[BitWidthLoss], share: float) -> Tensor:
        """Gradients of ``share`` times the next bit-width's loss; that loss."""
        with running_by(self.forwards), self.accelerator.autocast():
            loss = next(parts).loss
            scaled_backward(share)(loss)
        return loss.detach() * share

    def _refuse(self, loss: float, images: Tensor, epoch: int, step: int) -> None:
        with self.accelerator.autocast():
            own_fault = first_fault(self.trainee, images)
        faults = [fault for fault in gather_object([own_fault]) if fault]
        where = faults[0] if faults else "the loss itself, not in any module's output"
        raise NonFiniteError(
            f"expected a finite loss, got {loss} in epoch {epoch + 1}, step {step + 1}; the first "
            f"numbers that are not finite: {where}. Lower --lr {self.options.optimisation.lr}, add "
            "--warmup-epochs or look at the images; the last good checkpoint stands"
        )


def scaled_backward(share: float) -> Callable[[Tensor], None]:
    """Differentiates ``share`` times a loss, outside of autocast as torch asks for."""

    def backward(loss: Tensor) -> None:
        with torch.autocast(loss.device.type, enabled=False):
            (loss * share).backward()

    return backward


def create_mixup(options: TargetOptions, batch_size: int, num_classes: int) -> Mixup | None:
    """Mixup and cutmix where asked for; labels are smoothed by the criterion, not here.

    Raises:
        OptionError: an odd batch size, as images are mixed in pairs.
    """
    if not (options.mixup or options.cutmix):
        return None
    if batch_size % 2:
        raise OptionError(f"--mixup, --cutmix: expected an even batch size, got {batch_size}")
    return Mixup(options.mixup, options.cutmix, label_smoothing=0.0, num_classes=num_classes)
