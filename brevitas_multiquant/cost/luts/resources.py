"""Four numbers that no FPGA trades for each other."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

NAMES = ("luts", "bram18", "dsp", "uram")


@dataclass(frozen=True)
class Resources:
    """What hardware takes, or what a board has.

    Whole numbers of a layer; real numbers or tensors where a table is read between its entries.

    Args:
        luts: look-up tables.
        bram18: block RAMs of 18 kbit; one of 36 kbit is two of them.
        dsp: multiplier slices.
        uram: UltraRAMs of 288 kbit.

    Example:
        >>> Resources(luts=300) + Resources(luts=48, dsp=3)
        Resources(luts=348, bram18=0, dsp=3, uram=0)
    """

    luts: Any = 0
    bram18: Any = 0
    dsp: Any = 0
    uram: Any = 0

    def __add__(self, other: "Resources") -> "Resources":
        return Resources(*(getattr(self, name) + getattr(other, name) for name in NAMES))

    @classmethod
    def sum(cls, parts: Iterable["Resources"]) -> "Resources":
        """All parts together.

        Example:
            >>> Resources.sum([Resources(luts=1), Resources(luts=2)]).luts
            3
        """
        return sum(parts, cls())

    def priced(self, dsp: float = 0.0, bram18: float = 0.0, uram: float = 0.0) -> Any:
        """LUTs, with the other resources as so many LUTs each.

        A budget of LUTs alone would drive a search to where multipliers are DSPs.

        Args:
            dsp: LUTs that one DSP counts as.
            bram18: LUTs that one block RAM counts as.
            uram: LUTs that one UltraRAM counts as.

        Example:
            >>> Resources(luts=100, dsp=2).priced(dsp=55)
            210.0
        """
        return self.luts + dsp * self.dsp + bram18 * self.bram18 + uram * self.uram

    def exceeded(self, limit: "Resources") -> list[str]:
        """Names of the resources of which there is more than in ``limit``.

        Example:
            >>> Resources(luts=100, dsp=2).exceeded(Resources(luts=200, dsp=1))
            ['dsp']
        """
        return [name for name in NAMES if getattr(self, name) > getattr(limit, name)]
