"""A network, and what a run does with it because of its kind."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from torch import Tensor, nn

from brevitas_multiquant.core.image_task import ImageTask
from brevitas_multiquant.recipes.network.float_task import FLOAT_BITS, FloatTask
from brevitas_multiquant.recipes.network.protocols import Task
from brevitas_multiquant.recipes.network.training_forwards import Forwards
from brevitas_multiquant.recipes.options.training import ObjectiveOptions
from brevitas_multiquant.recipes.results.checkpoints import write_tensors
from brevitas_multiquant.recipes.results.layers import Running

Batches = Iterable[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Trainee:
    """A network that a run trains, evaluates and keeps; answers for a float one.

    It holds the network and is no module itself: names of parameters stay as they are.

    Example:
        >>> net = Trainee(nn.Linear(2, 1))
        >>> net.bits, len(list(net.model_parameters())), len(list(net.range_parameters()))
        ((32,), 2, 0)
    """

    module: nn.Module

    def of(self, module: nn.Module) -> Self:
        """The same for another network of this kind, such as its moving average."""
        return replace(self, module=module)

    def __call__(self, images: Tensor) -> Tensor:
        """Logits of images."""
        return self.module(images)

    def modules(self) -> Iterator[nn.Module]:
        """Those of the network, itself first."""
        return self.module.modules()

    def named_modules(self) -> Iterator[tuple[str, nn.Module]]:
        """Those of the network."""
        return self.module.named_modules()

    @property
    def bits(self) -> tuple[int, ...]:
        """The bit-widths that are evaluated."""
        return (FLOAT_BITS,)

    @property
    def active_bits(self) -> int | None:
        """The bit-width that the network runs at; None for a float one."""
        return None

    def at_bits(self, bits: int) -> AbstractContextManager[Any]:
        """Inside the block the network runs at a bit-width."""
        return nullcontext()

    @property
    def description(self) -> str:
        """What the float model has become."""
        return "float"

    def model_parameters(self) -> Iterator[nn.Parameter]:
        """Parameters but the ranges of quantizers."""
        return self.module.parameters()

    def range_parameters(self) -> Iterator[nn.Parameter]:
        """The ranges of quantizers."""
        return iter(())

    def calibrate(self, batches: Batches) -> None:
        """Set from the first of the batches what has to be set before training."""

    def task(self, criterion: nn.Module, options: ObjectiveOptions) -> Task:
        """What trains the network."""
        return FloatTask(self.module, criterion)

    def training_forwards(self, compiled: bool, recompute: bool) -> Forwards:
        """What runs in a training step in place of modules' own methods."""
        return {}

    def reestimate_norms(self, batches: Batches, count: int) -> list[nn.Module]:
        """Estimate running statistics from the first batches; the norms that have them."""
        return []

    def dead_branches(self, batches: Batches) -> list[str]:
        """Branches that give the same output for every image of the first batch."""
        return []

    def costs(self, img_size: int) -> Mapping[int, Any] | None:
        """Bit-width -> cost for square images, where there is a bit-width to choose."""
        return None

    def what_runs(self, img_size: int) -> Mapping[int, Running]:
        """Bit-width -> cost and layers for square images; empty of a float network."""
        return {}

    def values_of_epoch(self) -> dict[str, float]:
        """What else a row of results has; with a ``/`` in its name it is not in summary.csv."""
        return {}

    def saved_values(self) -> dict[str, Any]:
        """What a checkpoint has beside tensors, to make the same network again; for JSON."""
        return {}

    def save(self, path: Path, task: ImageTask | None = None) -> None:
        """Write the network for use: a float one as ``--initial-checkpoint`` reads it.

        Args:
            path: the file.
            task: what the network is for; a file of float weights holds nothing but weights.
        """
        write_tensors(path, self.module.state_dict())
