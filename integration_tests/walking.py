"""Lines of a walk over models: one for each, in a process of its own, appended as it is done."""

import csv
import multiprocessing
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TypeVar

import torch

L = TypeVar("L", bound="Line")


@dataclass
class Line:
    """One model of the walk.

    Args:
        model: ``library:name``.
        family: library and file.
        cnn: whether the model is in the list of convolutional networks.
        result: ``"converted"``, ``"refused"``, ``"self-check failed"``, or the type of an error
            that is not ours, which none may be.
        reason: first line of why it was refused.
        self_check: ``"equal"`` in evaluation and in seeded training mode, or empty.
        layers: convolution and linear layers of the model.
        quantized: of these, with 2-bit weights.
        sites: activation quantizers per branch.
        adds: additions of two tensors in a branch.
        norms: switchable norms per branch.
        half_branch: whether an odd bit-width is possible, or why not.
        bits: the candidate bit-widths of the conversion.
        size: height of the images.
        seconds: time on one core of the conversion with its self-check.
        peak_mb: memory that the conversion took at its peak.
        branches_mb: memory of the branches.
        qonnx: with ``--qonnx``: whether the file of the smallest bit-width reproduces the network:
            ``"equal"``, ``"equal but for ties"``, or what stands in the way.
    """

    model: str
    family: str
    cnn: bool
    result: str = ""
    reason: str = ""
    self_check: str = ""
    layers: int = 0
    quantized: int = 0
    sites: int = 0
    adds: int = 0
    norms: int = 0
    half_branch: str = ""
    bits: str = ""
    size: int = 0
    seconds: float = 0.0
    peak_mb: int = 0
    branches_mb: int = 0
    qonnx: str = ""

    def as_expected(self) -> bool:
        """Converted if convolutional, else refused; weights that depend on data are refused."""
        if self.cnn and "CondConv2d" not in self.reason:
            return self.result == "converted"
        return self.result == "refused"


def _send(pipe: Connection, line: L, work: Callable[[], L]) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    try:
        pipe.send(work())
    except Exception as error:
        message = f"{error}".split("\n")[0]
        pipe.send(replace(line, result=type(error).__name__, reason=message))


def in_own_process(line: L, work: Callable[[], L], timeout: float) -> L:
    """What work makes of a line; an error, a crash or its time becomes the result instead."""
    context = multiprocessing.get_context("fork")  # the libraries are loaded already
    ours, theirs = context.Pipe()
    process = context.Process(target=_send, args=(theirs, line, work))
    process.start()
    theirs.close()
    line = replace(line, result="crash")
    if not ours.poll(timeout):
        line.result, line.reason = "timeout", f"{timeout:.0f} s"
        process.kill()
    else:
        try:
            line = ours.recv()
        except EOFError:
            line.reason = "the process died"
    process.join()
    return line


def read_lines(path: Path, kind: type[L] = Line) -> list[L]:  # type: ignore[assignment]
    """The lines of a walk."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    kinds = {f.name: f.type for f in fields(kind)}
    lines = []
    for row in rows:
        values = {
            name: text == "True" if kinds[name] is bool else kinds[name](text)  # type: ignore[operator]
            for name, text in row.items()
        }
        lines.append(kind(**values))  # type: ignore[arg-type]
    return lines


def append_lines(
    names: Iterable[str], path: Path, line_of: Callable[[str], L], kind: type[L], jobs: int = 1
) -> list[L]:
    """Lines of the names that a file does not have yet, appended there as each is done."""
    done = {line.model for line in read_lines(path, kind)}
    waiting = [name for name in names if name not in done]
    new = not path.exists()
    with path.open("a", newline="") as file, ThreadPoolExecutor(jobs) as pool:
        writer = csv.DictWriter(file, [f.name for f in fields(kind)])
        if new:
            writer.writeheader()
        for line in pool.map(line_of, waiting):
            writer.writerow(asdict(line))
            file.flush()
            print(f"{line.model}: {line.result} {line.reason}, {line.seconds} s", flush=True)
    return read_lines(path, kind)
