"""The options of ``export``."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass

from brevitas_multiquant.export.finn.target import MEMORIES
from brevitas_multiquant.export.onnx.integer.processors import PROCESSORS
from brevitas_multiquant.recipes.options.option import (
    PACKED,
    Parser,
    add_group,
    add_options,
    argument,
    option,
    taken,
)
from brevitas_multiquant.recipes.options.types import positive

FORMATS = ("qonnx", "onnx", "finn")


@dataclass(frozen=True)
class ExportOptions:
    """What to write, where, and for which bit-widths and assignments."""

    packed: str = argument("FILE", PACKED)
    output: str = option("export", metavar="DIR", help="folder to write to")
    format: str = option("qonnx", choices=FORMATS, help="of the files; finn: projects of FINN")
    bits: list[int] | None = option(type=int, nargs="+", metavar="B", help="default: all")
    assignment: list[str] | None = option(
        nargs="+", metavar="FILE", help="JSON or YAML with bits for each site: written too"
    )
    img_size: int | None = option(type=positive, metavar="PIXELS", help="default: as trained")
    integer: bool = option(
        False, help="of onnx: layers that onnxruntime runs on integers, for speed on a CPU"
    )
    processor: str = option(
        "any", choices=list(PROCESSORS), help="of --integer: vnni, or Arm's dot product, is faster"
    )
    allow_ties: bool = option(
        False, help="of qonnx: accept codes that float rounding decides, as behind layer norms"
    )


@dataclass(frozen=True)
class HardwareOptions:
    """What an accelerator is built for; of ``--format finn`` alone."""

    board: str | None = option(metavar="NAME", help="that FINN knows; default: ZCU104")
    fpga_part: str | None = option(metavar="PART", help="instead of a board: a part number")
    target_fps: int = option(1000, positive, "frames a second")
    clock_ns: float = option(5.0, float, "clock period, in nanoseconds")
    memory: str = option("finn", choices=list(MEMORIES), help="auto: fewest LUTs")
    folding: str | None = option(metavar="FILE", help="an edited folding_config.json")
    switchable: bool = option(False, help="one accelerator for all bit-widths")


def export_parser() -> argparse.ArgumentParser:
    """All options of ``export``."""
    parser = Parser(
        "export",
        description="Write one file per bit-width, executed and compared with torch before.",
    )
    add_options(parser, ExportOptions)
    add_group(parser, "of --format finn", HardwareOptions)
    return parser


def parse_export(argv: Sequence[str] | None = None) -> tuple[ExportOptions, HardwareOptions]:
    """Parse the options.

    Example:
        >>> options, hardware = parse_export(["best.safetensors", "--format", "finn"])
        >>> options.format, hardware.target_fps
        ('finn', 1000)
    """
    parsed = export_parser().parse_args(argv)
    return taken(ExportOptions, parsed), taken(HardwareOptions, parsed)
