"""What every switchable module of one network looks at: which bit-width runs."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass(eq=False)
class ActiveBits:
    """Shared by all modules of a network, so that switching is one assignment.

    Args:
        bits: the active bit-width.
        quantized: False while the network runs float, as the self-check and the cost need it.
    """

    bits: int
    quantized: bool = True

    @contextmanager
    def floating(self) -> Iterator[None]:
        """Quantizers off inside the block."""
        before, self.quantized = self.quantized, False
        try:
            yield
        finally:
            self.quantized = before
