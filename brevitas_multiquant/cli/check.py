"""What keeps a model or a packed network from an FPGA, and on which boards it fits."""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from brevitas_multiquant.cli.network import LookedAtOptions, is_packed, network_of, title_of
from brevitas_multiquant.core.precision import Assignment
from brevitas_multiquant.errors import grouped
from brevitas_multiquant.export import check_finn, fit_table
from brevitas_multiquant.export.finn import FitTable
from brevitas_multiquant.export.finn.check import Violation
from brevitas_multiquant.export.finn.target import MEMORIES
from brevitas_multiquant.export.request import requested_shape
from brevitas_multiquant.export.sample import smooth_images
from brevitas_multiquant.nn import MultiQuantNet
from brevitas_multiquant.nn.stored import codings_of
from brevitas_multiquant.recipes.errors import exit_code
from brevitas_multiquant.recipes.options.model import NetworkOptions
from brevitas_multiquant.recipes.options.option import (
    Parser,
    add_group,
    add_options,
    option,
    taken,
)
from brevitas_multiquant.recipes.options.types import positive, positive_number
from brevitas_multiquant.training.calibrate import calibrate


@dataclass(frozen=True)
class BoardOptions:
    """Which boards, and for how many frames a second."""

    board: list[str] = option([], nargs="+", metavar="NAME", help="names FINN knows")
    fpga_part: list[str] = option([], nargs="+", metavar="PART", help="part numbers, as in Vivado")
    target_fps: int = option(1000, positive, "frames a second", metavar="F")
    clock_ns: float = option(5.0, positive_number, "clock period", metavar="NS")
    memory: str = option("finn", choices=list(MEMORIES), help="of tables; auto: fewest LUTs")
    switchable: bool = option(False, help="one accelerator for all bit-widths")


def check_parser() -> argparse.ArgumentParser:
    """All options of ``check``."""
    parser = Parser("check", description=__doc__)
    add_options(parser, LookedAtOptions)
    add_options(parser.add_argument_group("network"), NetworkOptions, leave_out=["profile"])
    add_group(parser, "boards: print which bit-widths fit on which, as estimated", BoardOptions)
    parser.set_defaults(profile="finn")
    return parser


def check(options: LookedAtOptions, network: NetworkOptions, boards: BoardOptions) -> bool:
    """Build the network for FPGAs, or load it, and print what does not map.

    Returns:
        Whether all of it maps.

    Raises:
        MultiQuantError: as `network_of`, or an assignment that does not fit the network.
    """
    net, assignments = network_of(options, network)
    violations = check_finn(net, assignments=assignments)
    fit = None
    if (boards.board or boards.fpga_part) and not violations:
        if not is_packed(options.model):
            # random weights and noise: what a trained network takes differs by a few per cent
            calibrate(net, [smooth_images((2, *requested_shape(net, None)[1:]))])
        fit = fit_table(
            net,
            boards.board,
            boards.fpga_part,
            target_fps=boards.target_fps,
            clock_ns=boards.clock_ns,
            memory=boards.memory,
            assignments=assignments,
            switchable=boards.switchable,
        )
    show = _as_json if options.json else _as_text
    print(show(title_of(options, net), net, assignments, violations, fit))
    return not violations


def notes_of(net: MultiQuantNet) -> list[str]:
    """What a network maps to that it does not look like."""
    return [
        f"a layer takes {form.negated_datatype} weights instead of {form.datatype} where "
        "the norm behind it has negative scales, as training may make them; each project's "
        "README.md names such layers"
        for form in {coding.running for coding in codings_of(net).values()}
        if not form.is_symmetric
    ]


def _as_text(
    what: str,
    net: MultiQuantNet,
    assignments: Sequence[Assignment],
    violations: Sequence[Violation],
    fit: FitTable | None,
) -> str:
    kinds = grouped((violation.where, violation.advice) for violation in violations)
    verdict = f"{len(violations)} violation(s) of {len(kinds)} kind(s)"
    verdict = verdict if violations else "maps to one dataflow partition"
    looked_at = f"{', '.join(map(str, net.bits))} bits"
    looked_at += "".join(f", assignment {one.name}" for one in assignments)
    notes = [f"note: {note}" for note in notes_of(net)]
    lines = [*kinds, *notes, f"{what}, {looked_at}: {verdict}"]
    return "\n".join(lines if fit is None else [*lines, str(fit)])


def _as_json(
    what: str,
    net: MultiQuantNet,
    assignments: Sequence[Assignment],
    violations: Sequence[Violation],
    fit: FitTable | None,
) -> str:
    document: dict[str, Any] = {
        "model": what.partition(" at ")[0],
        "input_shape": net.input_shape,
        "bits": net.bits,
        "assignments": [one.name for one in assignments],
        "maps": not violations,
        "violations": [violation.to_dict() for violation in violations],
        "notes": notes_of(net),
        "fit": None if fit is None else fit.to_dict(),
    }
    return json.dumps(document, indent=2)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; 0 where all maps, 2 for wrong usage, 1 for anything else."""
    parsed = check_parser().parse_args(argv)
    options, boards = taken(LookedAtOptions, parsed), taken(BoardOptions, parsed)
    return exit_code(lambda: check(options, taken(NetworkOptions, parsed), boards))


if __name__ == "__main__":
    sys.exit(main())
