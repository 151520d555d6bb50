"""A network, and what a run does with it because of its kind."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from torch import Tensor, nn

from brevitas_multiquant.recipes.network.protocols import Task
from brevitas_multiquant.recipes.network.training_forwards import Forwards
from brevitas_multiquant.recipes.options.training import ObjectiveOptions

Batches = Iterable[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Trainee(ABC):
    """Holds the network and is no module itself: names of parameters stay those of the network."""

    module: nn.Module

    def of(self, module: nn.Module) -> Self:
        """The same for another network of this kind, such as its moving average."""
        return replace(self, module=module)

    def __call__(self, images: Tensor) -> Tensor:
        """Logits of images."""
        return self.module(images)

    def modules(self) -> Iterator[nn.Module]:
        """Those of the network."""
        return self.module.modules()

    def named_modules(self) -> Iterator[tuple[str, nn.Module]]:
        """Those of the network."""
        return self.module.named_modules()

    @property
    @abstractmethod
    def bits(self) -> tuple[int, ...]:
        """The bit-widths that are evaluated."""

    @property
    @abstractmethod
    def active_bits(self) -> int | None:
        """The bit-width that the network runs at."""

    @abstractmethod
    def at_bits(self, bits: int) -> AbstractContextManager[Any]:
        """Inside the block the network runs at a bit-width."""

    @property
    @abstractmethod
    def description(self) -> str:
        """What the float model has become."""

    @abstractmethod
    def model_parameters(self) -> Iterator[nn.Parameter]:
        """Parameters but the ranges of quantizers."""

    @abstractmethod
    def range_parameters(self) -> Iterator[nn.Parameter]:
        """The ranges of quantizers."""

    @abstractmethod
    def calibrate(self, batches: Batches) -> None:
        """Set from the first of the batches what has to be set before training."""

    @abstractmethod
    def task(self, criterion: nn.Module, options: ObjectiveOptions) -> Task:
        """What trains the network."""

    @abstractmethod
    def training_forwards(self, compiled: bool, recompute: bool) -> Forwards:
        """What runs in a training step in place of modules' own methods."""

    @abstractmethod
    def reestimate_norms(self, batches: Batches, count: int) -> list[nn.Module]:
        """Estimate running statistics from the first batches; the norms that have them."""

    @abstractmethod
    def dead_branches(self, batches: Batches) -> list[str]:
        """Branches that give the same output for every image of the first batch."""

    @abstractmethod
    def costs(self, img_size: int) -> Mapping[int, Any] | None:
        """Bit-width -> cost, where there is something to tell."""

    @abstractmethod
    def save(self, path: Path) -> None:
        """Write the network for use."""
