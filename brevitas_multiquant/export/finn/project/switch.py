"""Change the bit-width of a running accelerator: write another set of threshold tables.

Needs numpy alone. ``runtime_weights/4b/`` and its like hold, a file a threshold layer, the 32-bit
words that its AXI-lite port takes; ``host_4b.json`` the processor's constants of that bit-width.
Those of an assignment, bits for each site, are called like ``4b-1f3a9c02``.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from host import Host

Write = Callable[[int, np.ndarray], None]
"""Writes words (uint32) from address 0 of the port of a threshold layer, counted from the input."""


class BitWidths:
    """The bit-widths of one accelerator, and its assignments.

    Args:
        folder: of the exported project.

    Attributes:
        bits: whole bit-widths, ascending.
        assignments: names of assignments.
    """

    def __init__(self, folder: str | Path = ".") -> None:
        self.folder = Path(folder)
        names = [path.name for path in (self.folder / "runtime_weights").glob("*b*")]
        self.assignments = sorted(name for name in names if "-" in name)
        self.bits = sorted(int(name.removesuffix("b")) for name in names if "-" not in name)

    def words(self, bits: int | str) -> list[np.ndarray]:
        """The words of every threshold layer, from the input to the output.

        Args:
            bits: the bit-width, or the name of an assignment.
        """
        if bits not in [*self.bits, *self.assignments]:
            raise ValueError(f"bits: expected one of {[*self.bits, *self.assignments]}, got {bits}")
        files = (self.folder / "runtime_weights" / _name_of(bits)).glob("*.dat")
        ordered = sorted(files, key=lambda path: int(path.name.partition("_")[0]))
        return [
            np.array([int(word, 16) for word in path.read_text().split()], dtype=np.uint32)
            for path in ordered
        ]

    def switch(self, bits: int | str, write: Write) -> Host:
        """Write the tables of a bit-width, or of an assignment, while no image is under way.

        Args:
            bits: the bit-width, or the name of an assignment.
            write: of the driver; with PYNQ ``lambda i, words: ports[i].write_mm(0,
                words.tobytes())``.

        Returns:
            The processor's side that goes with them.
        """
        for layer, words in enumerate(self.words(bits)):
            write(layer, words)
        return Host.load(self.folder / f"host_{_name_of(bits)}.json")


def _name_of(bits: int | str) -> str:
    return f"{bits}b" if isinstance(bits, int) else bits
