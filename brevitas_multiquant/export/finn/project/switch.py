"""Change the bit-width of a running accelerator: write another set of threshold tables.

Needs numpy alone. ``runtime_weights/4b/`` and its like hold, a file a threshold layer, the 32-bit
words that its AXI-lite port takes; ``host_4b.json`` the processor's constants of that bit-width.
Those of an assignment, bits for each site, are called like ``4b-1f3a9c02``.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from host import Host

Write = Callable[[int, np.ndarray], None]
"""Writes words (uint32) from address 0 of the port of a threshold layer, counted from the input."""


class BitWidths:
    """The bit-widths of one accelerator, and its assignments.

    Args:
        folder: of the exported project.
        folding: the ``folding_config.json`` that the bitstream was built with; default: that of the
            project. Words are for one parallelism alone, which `words` compares.

    Attributes:
        bits: whole bit-widths, ascending.
        assignments: names of assignments.
    """

    def __init__(self, folder: str | Path = ".", folding: str | Path | None = None) -> None:
        self.folder = Path(folder)
        self.ports = _read(self.folder / "runtime_weights" / "ports.json")
        self.layers = _read(self.folder / "folding_config.json" if folding is None else folding)
        names = [path.name for path in (self.folder / "runtime_weights").glob("*b*")]
        self.assignments = sorted(name for name in names if "-" in name)
        self.bits = sorted(int(name.removesuffix("b")) for name in names if "-" not in name)

    def words(self, bits: int | str) -> list[np.ndarray]:
        """The words of every threshold layer, from the input to the output.

        Args:
            bits: the bit-width, or the name of an assignment.

        Raises:
            ValueError: no such setting, or words that were made for another folding.
        """
        if bits not in [*self.bits, *self.assignments]:
            raise ValueError(f"bits: expected one of {[*self.bits, *self.assignments]}, got {bits}")
        files = (self.folder / "runtime_weights" / _name_of(bits)).glob("*.dat")
        ordered = sorted(files, key=lambda path: int(path.name.partition("_")[0]))
        words = [
            np.array([int(word, 16) for word in path.read_text().split()], dtype=np.uint32)
            for path in ordered
        ]
        if self.ports is not None:  # projects exported before did not say
            self._check(words)
        return words

    def _check(self, words: list[np.ndarray]) -> None:
        """Refuse words that the accelerator's ports would take for others."""
        again = "run estimate.py again, and take the bitstream that goes with it"
        if len(words) != len(self.ports):
            raise ValueError(f"words: expected {len(self.ports)} ports, got {len(words)}; {again}")
        for index, (port, of_port) in enumerate(zip(self.ports, words, strict=True)):
            name = port["layer"]
            if len(of_port) != port["words"]:
                raise ValueError(
                    f"words of port {index}, {name}: expected {port['words']}, got {len(of_port)}; "
                    f"{again}"
                )
            pe = (self.layers or {}).get(name, {}).get("PE", port["PE"])
            if pe != port["PE"]:
                raise ValueError(
                    f"words of port {index}, {name}: made for PE {port['PE']}, the accelerator has "
                    f"PE {pe}; {again}"
                )

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


def _read(path: str | Path) -> Any:
    return json.loads(Path(path).read_text()) if Path(path).exists() else None


def _name_of(bits: int | str) -> str:
    return f"{bits}b" if isinstance(bits, int) else bits
