"""The network of run-time bit-widths, trained as its method says and written packed."""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from brevitas_multiquant import (
    MultiQuantNet,
    calibrate,
    cost,
    objective_of,
    reestimate_norms,
    save_packed,
)
from brevitas_multiquant.core.image_task import ImageTask
from brevitas_multiquant.recipes.network import health
from brevitas_multiquant.recipes.network.trainee import Batches, Trainee
from brevitas_multiquant.recipes.network.training_forwards import Forwards, training_forwards
from brevitas_multiquant.recipes.options.training import ObjectiveOptions
from brevitas_multiquant.recipes.results.layers import Running, what_runs
from brevitas_multiquant.training.norm_statistics import norms_of
from brevitas_multiquant.training.quant_noise import set_quant_noise
from brevitas_multiquant.training.task import TrainingTask

IMAGE_CHANNELS = 3


@dataclass(frozen=True)
class MultiBranch(Trainee):
    """A `MultiQuantNet`, whose ranges are calibrated and learned, and whose file is packed."""

    module: MultiQuantNet

    @property
    def bits(self) -> tuple[int, ...]:
        """The candidates."""
        return self.module.bits

    @property
    def active_bits(self) -> int:
        """The one that is active."""
        return self.module.active_bits

    def at_bits(self, bits: int) -> AbstractContextManager[Any]:
        """Inside the block this one is active."""
        return self.module.at_bits(bits)

    @property
    def description(self) -> str:
        """Method, bit-widths, profile and weights."""
        config = self.module.config
        bits = ", ".join(map(str, self.bits))
        weights = config.grid or config.weights
        return f"{config.method}, {bits} bits, profile {config.profile}, weights {weights}"

    def model_parameters(self) -> Iterator[nn.Parameter]:
        """All but the ranges."""
        return self.module.model_parameters()

    def range_parameters(self) -> Iterator[nn.Parameter]:
        """The learned ranges of weights and activations."""
        return self.module.range_parameters()

    def calibrate(self, batches: Batches) -> None:
        """Set the ranges from one batch."""
        calibrate(self.module, batches, batches=1)

    def task(self, criterion: nn.Module, options: ObjectiveOptions) -> TrainingTask:
        """That of its method."""
        if options.quant_noise is not None:
            set_quant_noise(self.module, options.quant_noise)
        return objective_of(self.module, criterion=criterion, **options.of_task)

    def training_forwards(self, compiled: bool, recompute: bool) -> Forwards:
        """The network compiled, or its branches recomputed in the backward, or both."""
        return training_forwards(self.module, compiled, recompute)

    def reestimate_norms(self, batches: Batches, count: int) -> list[nn.Module]:
        """Those of each bit-width, by running it."""
        reestimate_norms(self.module, batches, batches=count)
        return [norm for bits in self.bits for norm in norms_of(self.module, bits)]

    def dead_branches(self, batches: Batches) -> list[str]:
        """As ``branches.1 at 2 bits``."""
        images, _ = next(iter(batches))
        return health.dead_branches(self.module, images)

    def costs(self, img_size: int) -> Mapping[int, Any]:
        """For square images."""
        return cost(self.module, (1, IMAGE_CHANNELS, img_size, img_size))

    def what_runs(self, img_size: int) -> Mapping[int, Running]:
        """At its assignment, where it has one for good."""
        return what_runs(self.module, (1, IMAGE_CHANNELS, img_size, img_size))

    def save(self, path: Path, task: ImageTask | None = None) -> None:
        """Packed, with what the network is for."""
        self.module.image_task = task
        save_packed(self.module, path)
