"""The float baseline, trained by the same recipe: one "bit-width", 32, and plain cross-entropy."""

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

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
