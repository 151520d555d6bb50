"""What a run asks of a network and of a task, whichever they are."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

from torch import Tensor, nn


class RunsAtBits(Protocol):
    """A network that runs at one of its bit-widths; `brevitas_multiquant.MultiQuantNet` is one."""

    @property
    def bits(self) -> tuple[int, ...]:
        """The bit-widths that it can run at."""

    @property
    def active_bits(self) -> int | None:
        """The one that it runs at; None for a float network."""

    def at_bits(self, bits: int, /) -> AbstractContextManager[Any]:
        """Inside the block it runs at a bit-width."""

    def __call__(self, images: Tensor, /) -> Tensor:
        """Logits of images."""

    def modules(self) -> Iterator[nn.Module]:
        """As `torch.nn.Module` has it."""

    def named_modules(self) -> Iterator[tuple[str, nn.Module]]:
        """As `torch.nn.Module` has it."""


class Task(Protocol):
    """Images and labels to a loss; `brevitas_multiquant.InPlaceDistillation` is one."""

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
