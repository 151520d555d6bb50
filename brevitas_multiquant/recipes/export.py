"""A packed network to verified ONNX files, one per bit-width and assignment: QONNX or plain."""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from brevitas_multiquant import Assignment, load_packed
from brevitas_multiquant.core.precision import Setting, described
from brevitas_multiquant.export import export_onnx, export_qonnx
from brevitas_multiquant.recipes.errors import MissingFileError, OptionError, exit_code
from brevitas_multiquant.recipes.options.option import add_options, option, taken
from brevitas_multiquant.recipes.options.types import positive


@dataclass(frozen=True)
class ExportOptions:
    """What to write, where, and for which bit-widths and assignments."""

    packed: str
    output: str = option("export", metavar="DIR")
    format: str = option("qonnx", choices=["qonnx", "onnx"])
    bits: list[int] | None = option(type=int, nargs="+", metavar="B", help="default: all")
    assignment: list[str] | None = option(
        nargs="+", metavar="FILE", help="JSON or YAML with bits for each site: written too"
    )
    img_size: int | None = option(type=positive, metavar="PIXELS", help="default: as trained")
    allow_ties: bool = option(
        False, help="of qonnx: accept codes that float rounding decides, as behind layer norms"
    )


def export_parser() -> argparse.ArgumentParser:
    """All options of ``recipes/export.py``."""
    parser = argparse.ArgumentParser(
        prog="export.py",
        description="Write one ONNX file per bit-width, executed and compared with torch before.",
        allow_abbrev=False,
    )
    parser.add_argument("packed", metavar="PACKED.safetensors")
    add_options(parser, ExportOptions)
    return parser


def run(options: ExportOptions) -> dict[Setting, Path]:
    """Export, and print a line for each file.

    Raises:
        MissingFileError: there is no packed file.
        OptionError: an option that the format does not know.
    """
    if options.allow_ties and options.format != "qonnx":
        raise OptionError(f"--allow-ties: expected --format qonnx, got {options.format}")
    if not Path(options.packed).is_file():
        raise MissingFileError(f"expected a packed network at {options.packed}, found none")
    assignments = [Assignment.load(path) for path in options.assignment or ()]
    net = load_packed(options.packed)
    shape, size = net.input_shape, options.img_size
    if size:
        shape = (1, shape[1] if shape else 3, size, size)
    asked: dict[str, Any] = {"input_shape": shape, "bits": options.bits}
    if assignments:
        asked["assignments"] = assignments
    if options.format == "onnx":
        files = export_onnx(net, options.output, **asked)
        lines = {path.name: "same class as torch in onnxruntime" for path in files.values()}
    else:
        files = export_qonnx(net, options.output, allow_ties=options.allow_ties, **asked)
        lines = agreement(Path(options.output) / "export.json")
    for setting, path in files.items():
        print(f"{described(setting)}: {path}: {lines[path.name]}")
    return files


def agreement(report: Path) -> dict[str, str]:
    """Name of a QONNX file -> how well it agrees with torch, from the report of the export."""
    text = {}
    written = json.loads(report.read_text(encoding="utf-8"))
    for entry in (*written["bits"].values(), *written.get("assignments", {}).values()):
        compared = entry["compared"].values()
        codes, flipped = (sum(c[key] for c in compared) for key in ("codes", "flipped_codes"))
        difference = max(c["logit_difference"] for c in compared)
        text[entry["file"]] = (
            f"flipped codes {flipped} of {codes}, largest difference of logits {difference:.1e}"
        )
    return text


def main(argv: Sequence[str] | None = None) -> int:
    """Run the recipe; 0 for success, 2 for wrong usage, 1 for any other named error."""
    return exit_code(lambda: run(taken(ExportOptions, export_parser().parse_args(argv))))


if __name__ == "__main__":
    sys.exit(main())
