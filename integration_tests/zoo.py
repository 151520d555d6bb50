"""Walk over the models of timm and torchvision: does each convert, or is it refused by name?

``python -m integration_tests.zoo --all --csv zoo.csv`` writes one line per model, as each is done;
a walk that was interrupted goes on where it stopped. Each model runs in a process of its own, so
that one that crashes, runs out of memory or hangs costs one line and not the walk.
``--table zoo.csv docs/zoo.md`` writes the table by family into the document.
"""

import argparse
import operator
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import nn

from brevitas_multiquant import MultiQuantNet, calibrate, multiquantize
from brevitas_multiquant.errors import MultiQuantError, SelfCheckError
from brevitas_multiquant.rewrite.build import cut
from brevitas_multiquant.rewrite.graph.trace import trace
from brevitas_multiquant.rewrite.narrow.body import narrow
from brevitas_multiquant.rewrite.narrow.widths import plan_half
from brevitas_multiquant.rewrite.plan import make_plan
from integration_tests.models import (
    all_names,
    build,
    build_without_weights,
    family,
    small_shape,
    zoo,
)
from integration_tests.walking import Line, append_lines, in_own_process, read_lines
from integration_tests.zoo_tables import write_table

_ADDITIONS = {operator.add, torch.add, "add"}


@dataclass(frozen=True)
class Options:
    """How a walk converts.

    Args:
        bits: candidate bit-widths.
        size: of images, where a model allows.
        timeout: seconds per model.
        qonnx: whether to export and compare as well.
    """

    bits: tuple[int, ...] = (2, 4, 6, 8)
    size: int = 128
    timeout: float = 900.0
    qonnx: bool = False


def half_branch_status(model: nn.Module, shape: tuple[int, ...]) -> str:
    """``"yes"`` if odd bit-widths are possible, or why not."""
    name = type(model).__name__
    try:
        traced = trace(model, shape)
        _, body, _ = cut(traced, make_plan(traced, name))
        narrow(body, plan_half(body, name), name)
    except MultiQuantError as error:
        return " ".join(str(error).split("\n")[:2])
    return "yes"


def qonnx_status(net: MultiQuantNet) -> str:
    """Whether the QONNX file of the smallest bit-width gives the network's codes and logits."""
    from brevitas_multiquant.export import export_qonnx
    from brevitas_multiquant.export.sample import smooth_images

    assert net.input_shape is not None
    _, *shape = net.input_shape
    calibrate(net, [smooth_images((2, *shape))])  # type: ignore[arg-type]
    error = "not tried"
    for allow_ties, verdict in ((False, "equal"), (True, "equal but for ties")):
        try:
            with tempfile.TemporaryDirectory() as folder:
                export_qonnx(net.eval(), folder, bits=net.bits[:1], allow_ties=allow_ties)
        except Exception as raised:  # exporters raise whatever they like
            error = f"{type(raised).__name__}: {raised}".split("\n")[0]
        else:
            return verdict
    return error


def examine(name: str, bits: Sequence[int], size: int, qonnx: bool = False) -> Line:
    """Convert one model in this process."""
    line = Line(name, family(name), name in zoo().cnns)
    model = build(name) if line.cnn else build_without_weights(name)  # a refusal needs none
    convert(line, model, bits, small_shape(model, size), qonnx)
    return line


def convert(
    line: Line,
    model: nn.Module,
    bits: Sequence[int],
    shape: tuple[int, ...],
    qonnx: bool = False,
    stem: str | None = None,
) -> MultiQuantNet | None:
    """Convert a model; what came out goes into its line."""
    line.bits, line.size = " ".join(map(str, bits)), shape[-2]
    net = None
    try:
        net = _measured(line, model, bits, shape, stem)
    except SelfCheckError as error:
        line.result, line.reason = "self-check failed", str(error)
    except MultiQuantError as error:
        line.result, line.reason = "refused", " ".join(str(error).split("\n")[:2])
    else:
        line.result, line.self_check = "converted", "equal"
        _describe(line, net)
        line.half_branch = half_branch_status(model, shape)
    if qonnx and net is not None:
        line.qonnx = qonnx_status(net)
    return net


def _measured(
    line: Line,
    model: nn.Module,
    bits: Sequence[int],
    shape: tuple[int, ...],
    stem: str | None,
) -> MultiQuantNet:
    """The converted model; its time and memory go into the line, also where it is refused."""
    _reset_peak()
    before, start = _memory("VmRSS"), time.process_time()
    try:
        return multiquantize(model, bits, input_shape=shape, stem=stem)
    finally:
        line.seconds = round(time.process_time() - start, 2)
        line.peak_mb = (_memory("VmHWM") - before) // 1024


def _describe(line: Line, net: MultiQuantNet) -> None:
    plan, branch = net.plan, net.branches[0]
    line.layers = len(plan.layers)
    line.quantized = sum(row.treatment == "2-bit weights" for row in plan.layers)
    line.sites = len(plan.sites) + len(plan.untraced_layers)
    line.norms = len(plan.norms)
    nodes = branch.graph.nodes  # type: ignore[union-attr]
    line.adds = sum(n.target in _ADDITIONS and len(n.all_input_nodes) > 1 for n in nodes)
    parameters = (*net.branches.parameters(), *net.branches.buffers())
    line.branches_mb = sum(p.numel() * p.element_size() for p in parameters) // 2**20


def _memory(field: str) -> int:
    """A figure of this process in kB, from the kernel."""
    status = Path("/proc/self/status").read_text().splitlines()
    return int(next(row for row in status if row.startswith(field)).split()[1])


def _reset_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def guarded(name: str, options: Options) -> Line:
    """Convert one model in a process of its own."""
    line = Line(name, family(name), name in zoo().cnns)
    work = partial(examine, name, options.bits, options.size, options.qonnx)
    return in_own_process(line, work, options.timeout)


def walk(names: Iterable[str], path: Path, options: Options, jobs: int = 1) -> list[Line]:
    """Convert what the file does not have yet, and append it there."""
    return append_lines(names, path, lambda name: guarded(name, options), Line, jobs)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])  # type: ignore[union-attr]
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--all", action="store_true", help="every model of both libraries")
    which.add_argument("--cnns", action="store_true", help="the convolutional ones")
    which.add_argument("--only-representatives", action="store_true", help="one of each kind")
    which.add_argument("--names", nargs="+", metavar="LIBRARY:NAME", help="these models")
    which.add_argument("--table", metavar="DOCUMENT", type=Path, help="write the table of --csv")
    parser.add_argument("--exports", type=Path, help="for --table: lines of a walk with --qonnx")
    parser.add_argument("--csv", type=Path, default=Path("zoo.csv"), help="one line per model")
    parser.add_argument("--bits", type=int, nargs="+", default=[2, 4, 6, 8])
    parser.add_argument("--size", type=int, default=128, help="of images, where a model allows")
    parser.add_argument("--timeout", type=float, default=900.0, help="seconds per model")
    parser.add_argument("--qonnx", action="store_true", help="export and compare as well")
    parser.add_argument("--jobs", type=int, default=1)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; 1 if a model was not treated as expected."""
    options = _parser().parse_args(arguments)
    if options.table:
        exported = read_lines(options.exports) if options.exports else ()
        write_table(read_lines(options.csv), options.table, exported)
        return 0
    names = options.names or (
        all_names() if options.all else zoo().cnns if options.cnns else zoo().representatives
    )
    how = Options(tuple(options.bits), options.size, options.timeout, options.qonnx)
    lines = walk(names, options.csv, how, options.jobs)
    wrong = [line for line in lines if not line.as_expected()]
    for line in wrong:
        print(f"not as expected: {line.model}: {line.result} {line.reason}")
    print(f"{len(lines)} models, {len(wrong)} not as expected")
    return int(bool(wrong))


if __name__ == "__main__":
    raise SystemExit(main())
