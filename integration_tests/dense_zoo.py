"""Walk over networks for maps, boxes, videos and features: what converts, and what is refused.

``python -m integration_tests.dense_zoo --csv dense.csv`` writes one line for each, as `zoo` does,
and goes on where it stopped; ``--table docs/zoo.md`` writes the tables into the document.
"""

import argparse
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from brevitas_multiquant import (
    ModelSource,
    MultiQuantNet,
    calibrate,
    extract_subnet,
    load_packed,
    save_packed,
)
from brevitas_multiquant.cost import cost
from brevitas_multiquant.export.sample import smooth_images
from integration_tests.dense_models import DenseModel, dense_models
from integration_tests.walking import Line, append_lines, in_own_process, read_lines
from integration_tests.zoo import Options, convert
from integration_tests.zoo_tables import exports, write_parts


@dataclass
class DenseLine(Line):
    """A `Line` of a network that gives something else than classes of an image.

    Args:
        outputs: tensors that it returns.
        packed: whether the plain network and the packed file give the network's outputs:
            ``"equal"``, or what differs.
    """

    outputs: int = 0
    packed: str = ""

    def as_expected(self) -> bool:
        """Converted, with a file that gives the same; or refused by name where it is to be."""
        if not self.cnn:
            return self.result == "refused"
        return self.result == "converted" and self.packed in ("", "equal")


def examine(model: DenseModel, bits: Sequence[int], qonnx: bool = False) -> DenseLine:
    """Convert one network in this process, and compare its forms."""
    line = DenseLine(model.name, model.kind, model.converts)
    built = model.build()
    net = convert(line, built, bits, model.shape_of(built), qonnx, stem=model.stem)
    if net is not None:
        line.outputs = len(net.structure.names)
        line.packed = packed_status(net, model)
    return line


def packed_status(net: MultiQuantNet, model: DenseModel) -> str:
    """Whether subnet and packed file give what the network gives, and costs are counted."""
    assert net.input_shape is not None
    images = smooth_images((2, *net.input_shape[1:]))
    calibrate(net, [images])
    if net.source is None:
        net.source = ModelSource("own", model.name, stem=model.stem)
    own = model.build() if net.source.library == "own" else None
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        loaded = load_packed(save_packed(net.eval(), f"{folder}/net.safetensors"), own)
        wanted = net.structure.tensors(net(images))
        for what, form in (("subnet", extract_subnet(net, max(net.bits))), ("file", loaded)):
            found = net.structure.tensors(form(images))
            if not all(map(torch.equal, found, wanted)):
                return f"the {what} differs"
    return "equal" if cost(net)[max(net.bits)].bitops > 0 else "no bit operations are counted"


def walk(names: Iterable[str], path: Path, options: Options) -> list[DenseLine]:
    """Convert what the file does not have yet, and append it there."""
    known = dense_models(options.size)

    def line_of(name: str) -> DenseLine:
        model = known[name]
        line = DenseLine(name, model.kind, model.converts)
        work = partial(examine, model, options.bits, options.qonnx)
        return in_own_process(line, work, options.timeout)

    return append_lines(names, path, line_of, DenseLine)


def table(lines: Iterable[DenseLine]) -> str:
    """The walk by what networks are for, as Markdown."""
    kinds: dict[str, list[DenseLine]] = defaultdict(list)
    for line in lines:
        kinds[line.family].append(line)
    rows = ["| networks for | converted | file equal | layers quantized | seconds, median |"]
    rows.append("|---|---:|---:|---:|---:|")
    for kind, members in kinds.items():
        converted = [line for line in members if line.result == "converted"]
        equal = sum(line.packed == "equal" for line in converted)
        quantized, layers = (sum(getattr(m, f) for m in converted) for f in ("quantized", "layers"))
        seconds = sorted(line.seconds for line in converted)
        middle = f"{seconds[len(seconds) // 2]:.1f}" if seconds else "-"
        share = f"{quantized} of {layers}" if layers else "-"
        count = f"{len(converted)} of {len(members)}"
        rows.append(f"| {kind} | {count} | {equal} of {len(converted)} | {share} | {middle} |")
    return "\n".join(rows)


def refused(lines: Iterable[DenseLine]) -> str:
    """What was refused and why, as Markdown."""
    models: dict[str, list[str]] = defaultdict(list)
    for line in lines:
        if line.result != "converted":
            reason = line.reason.partition("  - ")[2] or line.reason
            models[reason.replace("|", "/")].append(f"`{line.model}`")
    rows = [f"| {', '.join(names)} | {reason} |" for reason, names in models.items()]
    return "\n".join(["| refused | because |", "|---|---|", *rows])


def write_tables(lines: list[DenseLine], document: Path) -> None:
    """Replace what stands between the markers of a document."""
    parts = {
        "dense": table(lines),
        "dense refusals": refused(lines),
        "dense exports": exports(lines),
    }
    write_parts(parts, document)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; 1 if a network was not treated as expected."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--names", nargs="+", metavar="NAME", help="these networks; default: all")
    parser.add_argument("--csv", type=Path, default=Path("dense.csv"), help="one line each")
    parser.add_argument("--table", metavar="DOCUMENT", type=Path, help="write the tables of --csv")
    parser.add_argument("--bits", type=int, nargs="+", default=[2])
    parser.add_argument("--size", type=int, default=96, help="of images, where a model allows")
    parser.add_argument("--timeout", type=float, default=900.0, help="seconds per network")
    parser.add_argument("--qonnx", action="store_true", help="export and compare as well")
    options = parser.parse_args(arguments)
    if options.table:
        write_tables(read_lines(options.csv, DenseLine), options.table)
        return 0
    names = options.names or dense_models(options.size)
    how = Options(tuple(options.bits), options.size, options.timeout, options.qonnx)
    lines = walk(names, options.csv, how)
    wrong = [line for line in lines if not line.as_expected()]
    for line in wrong:
        print(f"not as expected: {line.model}: {line.result} {line.reason} {line.packed}")
    print(f"{len(lines)} networks, {len(wrong)} not as expected")
    return int(bool(wrong))


if __name__ == "__main__":
    raise SystemExit(main())
