"""A packed network to verified files, one per bit-width and assignment: QONNX, ONNX or FINN."""

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from brevitas_multiquant import Assignment, MultiQuantNet, load_packed
from brevitas_multiquant.core.precision import Setting, described
from brevitas_multiquant.export import export_finn, export_onnx, export_qonnx
from brevitas_multiquant.recipes.errors import OptionError, exit_code
from brevitas_multiquant.recipes.options.export import (
    ExportOptions,
    HardwareOptions,
    parse_export,
)
from brevitas_multiquant.storage.foreign import require_packed_file
from brevitas_multiquant.storage.shipped import packed_path

Written = tuple[dict[Setting, Path], dict[str, str]]
"""Setting -> its file, and by the file's name what is said of it."""


def run(options: ExportOptions, hardware: HardwareOptions | None = None) -> dict[Setting, Path]:
    """Export, and print a line for each file.

    Raises:
        PackedFileError: there is no packed file.
        OptionError: an option that the format does not know.
    """
    hardware = hardware or HardwareOptions()
    if options.allow_ties and options.format != "qonnx":
        raise OptionError(f"--allow-ties: expected --format qonnx, got {options.format}")
    if options.integer and options.format != "onnx":
        raise OptionError(f"--integer: expected --format onnx, got {options.format}")
    if options.processor != "any" and not options.integer:
        raise OptionError(f"--processor: expected --integer with it, got {options.processor}")
    if options.format != "finn" and hardware != HardwareOptions():
        raise OptionError(f"options of boards: expected --format finn, got {options.format}")
    if options.format == "finn" and options.img_size:
        raise OptionError("--img-size: expected --format qonnx or onnx; hardware has its size")
    require_packed_file(packed_path(options.packed))
    assignments = [Assignment.load(path) for path in options.assignment or ()]
    asked: dict[str, Any] = {"bits": options.bits}
    if assignments:
        asked["assignments"] = assignments
    net = load_packed(options.packed)
    if options.format != "finn":
        asked["input_shape"] = _shape(net, options)
    files, lines = _WRITERS[options.format](net, options, hardware, asked)
    for setting, path in files.items():
        print(f"{described(setting)}: {path}: {lines[path.name]}")
    return files


def _shape(net: MultiQuantNet, options: ExportOptions) -> tuple[int, ...] | None:
    if not options.img_size:
        return net.input_shape
    channels = net.input_shape[1] if net.input_shape else 3
    return (1, channels, options.img_size, options.img_size)


def _onnx(
    net: MultiQuantNet, options: ExportOptions, hardware: HardwareOptions, asked: dict[str, Any]
) -> Written:
    if options.integer:
        files = export_onnx(net, options.output, integer=True, processor=options.processor, **asked)  # type: ignore[arg-type]
        return files, _integer_lines(Path(options.output) / "export.json")
    files = export_onnx(net, options.output, **asked)
    return files, {path.name: "same class as torch in onnxruntime" for path in files.values()}


def _qonnx(
    net: MultiQuantNet, options: ExportOptions, hardware: HardwareOptions, asked: dict[str, Any]
) -> Written:
    files = export_qonnx(net, options.output, allow_ties=options.allow_ties, **asked)
    return files, agreement(Path(options.output) / "export.json")


def _finn(
    net: MultiQuantNet, options: ExportOptions, hardware: HardwareOptions, asked: dict[str, Any]
) -> Written:
    more = asdict(hardware)
    files = export_finn(net, options.output, part=more.pop("fpga_part"), **more, **asked)
    return files, {path.name: "the integers of torch" for path in files.values()}


_WRITERS: dict[str, Callable[..., Written]] = {"onnx": _onnx, "qonnx": _qonnx, "finn": _finn}


def agreement(report: Path) -> dict[str, str]:
    """Name of a QONNX file -> how well it agrees with torch, from the report of the export."""
    text = {}
    for entry in _entries(report):
        compared = entry["compared"].values()
        codes, flipped = (sum(c[key] for c in compared) for key in ("codes", "flipped_codes"))
        difference = max(c["logit_difference"] for c in compared)
        text[entry["file"]] = (
            f"flipped codes {flipped} of {codes}, largest difference of logits {difference:.1e}"
        )
    return text


def _integer_lines(report: Path) -> dict[str, str]:
    """Name of a file of integers -> what runs as integers, and how well it agrees with torch."""
    text = {}
    for entry in _entries(report):
        compared, floats = entry["compared"], entry["float_convolutions"]
        text[entry["file"]] = (
            f"{entry['integer_layers']} layers of integers, {floats} convolutions of floats; class "
            f"of torch for {compared['same_class']} of {compared['images']} images, largest "
            f"difference of logits {compared['largest_logit_difference']:.1e} of "
            f"{compared['largest_logit']:.1e}"
        )
    return text


def _entries(report: Path) -> list[dict[str, Any]]:
    """What a report says of each file."""
    written = json.loads(report.read_text(encoding="utf-8"))
    return [*written["bits"].values(), *written.get("assignments", {}).values()]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the recipe; 0 for success, 2 for wrong usage, 1 for any other named error."""
    return exit_code(lambda: run(*parse_export(argv)))


if __name__ == "__main__":
    sys.exit(main())
