"""What a run asks of a network and of a task, whichever they are."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

from torch import Tensor, nn

from brevitas_multiquant.training.task import BitWidthLoss


class RunsAtBits(Protocol):
    """A network that runs at one of its bit-widths; `brevitas_multiquant.MultiQuantNet` is one."""

    @property
    def bits(self) -> tuple[int, ...]:
        """The bit-widths that it can run at."""

    @property
    def active_bits(self) -> int | None:
        """The one that it runs at; None for a float network."""

    def at_bits(self, bits: Any, /) -> AbstractContextManager[Any]:
        """Inside the block it runs at a bit-width, or an assignment where it has sites."""

    def __call__(self, images: Tensor, /) -> Tensor:
        """Logits of images."""

    def modules(self) -> Iterator[nn.Module]:
        """As `torch.nn.Module` has it."""

    def named_modules(self) -> Iterator[tuple[str, nn.Module]]:
        """As `torch.nn.Module` has it."""


class Task(Protocol):
    """Images and labels to a loss; what `brevitas_multiquant.objective_of` gives is one."""

    @property
    def updates_after_each(self) -> bool:
        """Whether the optimizers step after each bit-width, and not after all of a batch."""

    def train(self, mode: bool = True, /) -> Any:
        """As `torch.nn.Module` has it."""

    def step(
        self,
        images: Tensor,
        target: Tensor,
        backward: Callable[[Tensor], Any],
        bits: Sequence[int] | None = None,
    ) -> dict[str, Any]:
        """A batch's ``loss`` and its parts, each after its backward; ``bits``: those that run."""

    def losses(
        self, images: Tensor, target: Tensor, chosen: Sequence[int] | None = None
    ) -> Iterator[BitWidthLoss]:
        """The loss of each bit-width that runs, before the next one runs."""

    def at(self, epoch: int, epochs: int, step: int, seed: int = 0) -> None:
        """Be told where in its training the network is, before every step."""

    def range_rate(self, bits: int) -> float:
        """The factor of the ranges' learning rate in the update after a bit-width."""
