"""Cells that yosys makes of SystemVerilog: for `finn_synthesis.py` and its neighbour of products.

UltraScale+, yosys with its slang front end, no placement and no timing. Memories and DSPs are boxes
or LUTs, never block RAM.
"""

import csv
import re
import subprocess
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

RESULTS = Path(__file__).parent / "results"
YOSYS = (
    "read_slang --threads 1 --allow-use-before-declare --ignore-assertions --top {top} {files}; "
    "synth_xilinx -family xcup -nobram -nodsp -noiopad -noclkbuf -flatten -top {top}; "
    "tee -o {out} stat"
)
SHIFT_REGISTER = """(* blackbox *) module SRLC32E(
  output logic Q, input logic [4:0] A, input logic CE, CLK, D); endmodule
"""
LUT_CELL = re.compile(r"LUT\d(_2)?|INV|SRL\w+")
MEMORY_LUTS = {"RAM32M16": 8, "RAM64M8": 8, "RAM32M": 4, "RAM64M": 4, "RAM32X1D": 2, "RAM64X1D": 2}
MEMORY_LUTS |= {"RAM128X1D": 4, "RAM256X1D": 8}
"""Memory of LUTs -> how many it takes."""


def reworded(text: str, patterns: Iterable[tuple[str, str]], source: Path) -> str:
    """FINN's text with each pattern replaced, once.

    Raises:
        RuntimeError: a pattern is not there, or twice: another release of FINN.
    """
    for pattern, replacement in patterns:
        text, count = re.subn(pattern, replacement, text, flags=re.S)
        if count != 1:
            raise RuntimeError(f"{source}: another release of FINN: no single {pattern!r}")
    return text


def cells(yosys: str, folder: Path, top: str, files: Sequence[str]) -> Counter[str]:
    """Kind of cell -> how many."""
    script = YOSYS.format(top=top, files=" ".join(files), out="cells.txt")
    command = [yosys, "-Q", "-q", "-p", script]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError((done.stdout + done.stderr)[-2000:])
    lines = (folder / "cells.txt").read_text().splitlines()
    found = (re.fullmatch(r"\s*(\d+)\s+([A-Z][A-Z0-9_]+)\s*", line) for line in lines)
    return Counter({match[2]: int(match[1]) for match in found if match})


def counted(found: Counter[str]) -> dict[str, int]:
    """LUTs of logic and shift registers, and flip-flops."""
    return {
        "logic": sum(n for kind, n in found.items() if LUT_CELL.fullmatch(kind)),
        "flip_flops": sum(n for kind, n in found.items() if kind[:2] == "FD"),
    }


def memory_luts(found: Counter[str]) -> int:
    """LUTs of small memories.

    Raises:
        RuntimeError: a kind of memory that is not in `MEMORY_LUTS`.
    """
    memories = {kind: n for kind, n in found.items() if kind.startswith("RAM")}
    unknown = memories.keys() - MEMORY_LUTS.keys()
    if unknown:
        raise RuntimeError(f"memories of unknown size: {sorted(unknown)}")
    return sum(n * MEMORY_LUTS[kind] for kind, n in memories.items())


def read(path: Path) -> list[dict[str, str]]:
    """Rows so far."""
    if not path.exists():
        return []
    with path.open() as file:
        return list(csv.DictReader(file))


def write(path: Path, columns: Sequence[str], rows: Iterable[dict[str, object]]) -> None:
    """All rows."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
