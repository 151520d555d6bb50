"""Walk over the models of timm and torchvision: does each convert, or is it refused by name?

``python -m integration_tests.zoo --all --csv zoo.csv`` writes one line per model, as each is done;
a walk that was interrupted goes on where it stopped. Each model runs in a process of its own, so
that one that crashes, runs out of memory or hangs costs one line and not the walk.
``--table zoo.csv docs/zoo.md`` writes the table by family into the document.
"""

import argparse
import csv
import multiprocessing
import operator
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields
from multiprocessing.connection import Connection
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

_ADDITIONS = {operator.add, torch.add, "add"}


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
    shape = small_shape(model, size)
    line.bits, line.size = " ".join(map(str, bits)), shape[-2]
    try:
        net = _measured(line, model, bits, shape)
    except SelfCheckError as error:
        line.result, line.reason = "self-check failed", str(error)
    except MultiQuantError as error:
        line.result, line.reason = "refused", " ".join(str(error).split("\n")[:2])
    else:
        line.result, line.self_check = "converted", "equal"
        _describe(line, net)
        line.half_branch = half_branch_status(model, shape)
    if qonnx and line.result == "converted":
        line.qonnx = qonnx_status(net)
    return line


def _measured(
    line: Line, model: nn.Module, bits: Sequence[int], shape: tuple[int, ...]
) -> MultiQuantNet:
    """The converted model; its time and memory go into the line, also where it is refused."""
    _reset_peak()
    before, start = _memory("VmRSS"), time.process_time()
    try:
        return multiquantize(model, bits, input_shape=shape)
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


def _examine_into(pipe: Connection, name: str, options: Options) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    try:
        pipe.send(examine(name, options.bits, options.size, options.qonnx))
    except Exception as error:
        message = f"{error}".split("\n")[0]
        pipe.send(Line(name, family(name), name in zoo().cnns, type(error).__name__, message))


def guarded(name: str, options: Options) -> Line:
    """Convert one model in a process of its own."""
    context = multiprocessing.get_context("fork")  # the libraries are loaded already
    ours, theirs = context.Pipe()
    process = context.Process(target=_examine_into, args=(theirs, name, options))
    process.start()
    theirs.close()
    line = Line(name, family(name), name in zoo().cnns, "crash")
    if not ours.poll(options.timeout):
        line.result, line.reason = "timeout", f"{options.timeout:.0f} s"
        process.kill()
    else:
        try:
            line = ours.recv()
        except EOFError:
            line.reason = "the process died"
    process.join()
    return line


def read_lines(path: Path) -> list[Line]:
    """The lines of a walk."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    kinds = {f.name: f.type for f in fields(Line)}
    lines = []
    for row in rows:
        values = {
            name: text == "True" if kinds[name] is bool else kinds[name](text)  # type: ignore[operator]
            for name, text in row.items()
        }
        lines.append(Line(**values))
    return lines


def walk(names: Iterable[str], path: Path, options: Options, jobs: int = 1) -> list[Line]:
    """Convert what the file does not have yet, and append it there."""
    done = {line.model for line in read_lines(path)}
    waiting = [name for name in names if name not in done]
    new = not path.exists()
    with path.open("a", newline="") as file, ThreadPoolExecutor(jobs) as pool:
        writer = csv.DictWriter(file, [f.name for f in fields(Line)])
        if new:
            writer.writeheader()
        for line in pool.map(lambda name: guarded(name, options), waiting):
            writer.writerow(asdict(line))
            file.flush()
            print(f"{line.model}: {line.result} {line.reason}, {line.seconds} s", flush=True)
    return read_lines(path)


def summary(lines: Sequence[Line]) -> str:
    """What was walked and what came out, in sentences."""
    cnns = [line for line in lines if line.cnn]
    converted = [line for line in cnns if line.result == "converted"]
    others = [line for line in lines if not line.cnn]
    wrong = [line.model for line in lines if not line.as_expected()]
    settings = Counter((line.bits, line.size) for line in converted)
    (bits, size), _ = settings.most_common(1)[0] if settings else (("", 0), 0)
    seconds = sorted(line.seconds for line in converted) or [0.0]
    return (
        f"{len(cnns)} of the {len(zoo().cnns)} convolutional networks: {len(converted)} converted "
        f"with an equal self-check. {len(others)} of the "
        f"{len(all_names()) - len(zoo().cnns)} others: "
        f"{sum(line.result == 'refused' for line in others)} refused by name. Not as expected: "
        f"{', '.join(wrong) or 'none'}. Most at bits {bits} and images of {size} pixels; median "
        f"{seconds[len(seconds) // 2]:.1f} s on one core."
    )


def table(lines: Iterable[Line]) -> str:
    """The walk by family, as Markdown."""
    families: dict[str, list[Line]] = defaultdict(list)
    for line in lines:
        if line.cnn:
            families[line.family].append(line)
    rows = ["| family | models | converted | layers quantized | half branch | seconds, median |"]
    rows.append("|---|---:|---:|---:|---:|---:|")
    for name, members in sorted(families.items()):
        converted = [line for line in members if line.result == "converted"]
        quantized, layers = (
            sum(getattr(line, what) for line in converted) for what in ("quantized", "layers")
        )
        asked = [line.half_branch for line in converted if line.half_branch]
        seconds = sorted(line.seconds for line in converted)
        middle = f"{seconds[len(seconds) // 2]:.1f}" if seconds else "-"
        share = f"{quantized} of {layers}"
        half = f"{asked.count('yes')} of {len(asked)}" if asked else "-"
        rows.append(f"| {name} | {len(members)} | {len(converted)} | {share} | {half} | {middle} |")
    return "\n".join(rows)


def refusals(lines: Iterable[Line]) -> str:
    """Why models were refused, and how many for each reason, as Markdown."""
    kinds = {
        "attention": "multipl",
        "mixes positions": "add",
        "recurrent or attention module": "attention and recurrence",
        "weights that depend on the input": "CondConv2d",
    }
    counts: Counter[str] = Counter()
    for line in lines:
        if line.result == "refused":
            found = [kind for kind, sign in kinds.items() if sign in line.reason]
            counts[found[-1] if found else line.reason] += 1
    rows = ["| refused because of | models |", "|---|---:|"]
    return "\n".join([*rows, *(f"| {kind} | {count} |" for kind, count in counts.most_common())])


def exports(lines: Iterable[Line]) -> str:
    """Whose QONNX file reproduces the network, and what stands in the way of others."""
    verdicts: dict[str, list[str]] = defaultdict(list)
    for line in lines:
        if line.qonnx:
            verdicts[line.qonnx.replace("|", "/")].append(f"`{line.model}`")
    rows = ["| QONNX file | models | which |", "|---|---:|---|"]
    ordered = sorted(verdicts.items(), key=lambda item: -len(item[1]))
    rows += [f"| {what} | {len(names)} | {', '.join(names)} |" for what, names in ordered]
    return "\n".join(rows)


def write_table(lines: list[Line], document: Path) -> None:
    """Replace what stands between the markers of a document."""
    text = document.read_text()
    parts = {
        "walk": summary(lines),
        "families": table(lines),
        "refusals": refusals(lines),
        "exports": exports(lines),
    }
    for marker, content in parts.items():
        start, end = f"<!-- {marker} -->\n", f"\n<!-- end of {marker} -->"
        before, _, rest = text.partition(start)
        _, _, after = rest.partition(end)
        text = f"{before}{start}{content}{end}{after}"
    document.write_text(text)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])  # type: ignore[union-attr]
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--all", action="store_true", help="every model of both libraries")
    which.add_argument("--cnns", action="store_true", help="the convolutional ones")
    which.add_argument("--only-representatives", action="store_true", help="one of each kind")
    which.add_argument("--names", nargs="+", metavar="LIBRARY:NAME", help="these models")
    which.add_argument("--table", metavar="DOCUMENT", type=Path, help="write the table of --csv")
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
        write_table(read_lines(options.csv), options.table)
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
