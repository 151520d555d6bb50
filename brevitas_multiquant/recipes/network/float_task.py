"""The float baseline, trained by the same recipe: one "bit-width", 32, and plain cross-entropy."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from torch import Tensor, nn

from brevitas_multiquant.training.task import BitWidthLoss

FLOAT_BITS = 32


class FloatTask(nn.Module):
    """The float baseline behind the interface of a `TrainingTask`: plain cross-entropy."""

    updates_after_each = False

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

    def losses(
        self, images: Tensor, target: Tensor, chosen: Sequence[int] | None = None
    ) -> Iterator[BitWidthLoss]:
        """Its only one."""
        parts = self(images, target)
        loss = parts["loss"]
        yield BitWidthLoss(FLOAT_BITS, loss, parts["outputs"][FLOAT_BITS], loss, None)

    def at(self, epoch: int, epochs: int, step: int, seed: int = 0) -> None:
        """Nothing depends on it."""

    def range_rate(self, bits: int) -> float:
        """As scheduled: there are no ranges."""
        return 1.0
