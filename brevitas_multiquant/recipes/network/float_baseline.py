"""The float baseline, trained by the same recipe: one "bit-width", 32, and plain cross-entropy."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from brevitas_multiquant.recipes.network.trainee import Batches, Trainee
from brevitas_multiquant.recipes.network.training_forwards import Forwards
from brevitas_multiquant.recipes.options.training import ObjectiveOptions
from brevitas_multiquant.recipes.results.checkpoints import write_tensors

FLOAT_BITS = 32


class FloatTask(nn.Module):
    """The float baseline behind the interface of `InPlaceDistillation`: plain cross-entropy."""

    def __init__(self, net: nn.Module, criterion: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.criterion = criterion

    def forward(self, images: Tensor, target: Tensor) -> dict[str, Any]:
        """``loss`` and ``outputs`` of a batch."""
        logits = self.net(images)
        loss = self.criterion(logits, target)
        return {"loss": loss, "outputs": {FLOAT_BITS: logits}}

    def step(
        self,
        images: Tensor,
        target: Tensor,
        backward: Callable[[Tensor], Any],
        bits: Sequence[int] | None = None,
    ) -> dict[str, Any]:
        """The same, after ``backward(loss)``."""
        parts = self(images, target)
        backward(parts["loss"])
        return parts


class FloatBaseline(Trainee):
    """A float network: no ranges, no branches, no cost that depends on a bit-width.

    Example:
        >>> net = FloatBaseline(nn.Linear(2, 1))
        >>> net.bits, len(list(net.model_parameters())), len(list(net.range_parameters()))
        ((32,), 2, 0)
    """

    bits = (FLOAT_BITS,)
    active_bits = None
    description = "float"

    def at_bits(self, bits: int) -> AbstractContextManager[None]:
        """It runs at no other."""
        return nullcontext()

    def model_parameters(self) -> Iterator[nn.Parameter]:
        """All of them."""
        return self.module.parameters()

    def range_parameters(self) -> Iterator[nn.Parameter]:
        """None."""
        return iter(())

    def calibrate(self, batches: Batches) -> None:
        """There is nothing to set."""

    def task(self, criterion: nn.Module, options: ObjectiveOptions) -> FloatTask:
        """Plain cross-entropy, as nobody teaches."""
        return FloatTask(self.module, criterion)

    def training_forwards(self, compiled: bool, recompute: bool) -> Forwards:
        """The network runs as it is."""
        return {}

    def reestimate_norms(self, batches: Batches, count: int) -> list[nn.Module]:
        """Its moving averages stay as they are."""
        return []

    def dead_branches(self, batches: Batches) -> list[str]:
        """It has no branches."""
        return []

    def costs(self, img_size: int) -> None:
        """Nothing to choose a bit-width by."""

    def save(self, path: Path) -> None:
        """As ``--initial-checkpoint`` reads it."""
        write_tensors(path, self.module.state_dict())
