"""``brevitas-multiquant``: what a model would become, cost and lack, and what a network sees."""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace

from torch import nn

from brevitas_multiquant.allocation.command import add_allocate_options, run_allocation
from brevitas_multiquant.core.float_model import ModelSource, infer_input_shape
from brevitas_multiquant.core.method import method_named
from brevitas_multiquant.core.precision import Assignment
from brevitas_multiquant.cost.table import cost
from brevitas_multiquant.errors import BitWidthError, MultiQuantError, SourceError, grouped
from brevitas_multiquant.export import check_finn, fit_table
from brevitas_multiquant.export.finn import FitTable
from brevitas_multiquant.export.finn.target import MEMORIES
from brevitas_multiquant.export.request import requested_shape
from brevitas_multiquant.export.sample import smooth_images
from brevitas_multiquant.methods.convert import multiquantize
from brevitas_multiquant.methods.options import add_config_options, config_from
from brevitas_multiquant.nn import MultiQuantNet
from brevitas_multiquant.nn.stored import codings_of, weights_in_words
from brevitas_multiquant.recipes import predict
from brevitas_multiquant.recipes.options.option import Parser
from brevitas_multiquant.recipes.options.predict import PredictOptions, add_predict_options
from brevitas_multiquant.training.calibrate import calibrate
from brevitas_multiquant.version import __version__


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Returns:
        Exit code: 0, or 1 where the model cannot be converted, or not be mapped to hardware.
        Wrong usage exits with 2.
    """
    options = _parser().parse_args(arguments)
    try:
        return int(bool(options.run(options)))
    except MultiQuantError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="python -m brevitas_multiquant", description=__doc__)
    parser.add_argument("--version", action="version", version=f"brevitas-multiquant {__version__}")
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("inspect", help="print what a model would cost, untrained")
    _add_model_options(command)
    command.add_argument("--plan", action="store_true", help="print each layer too")
    _add_assignment_option(command)
    command.set_defaults(run=inspect)
    command = commands.add_parser("check", help="print what keeps a model from an FPGA, untrained")
    _add_model_options(command, leave_out=["profile"])
    _add_assignment_option(command)
    _add_board_options(command)
    command.set_defaults(run=check, profile="finn")
    command = commands.add_parser("allocate", help="print bits of every layer within a budget")
    _add_source_options(command)
    add_allocate_options(command)
    command.set_defaults(run=allocate)
    command = commands.add_parser("predict", help="print the likeliest classes of image files")
    add_predict_options(command)
    command.set_defaults(run=lambda parsed: predict.run(PredictOptions.from_parsed(parsed)))
    return parser


def _add_assignment_option(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--assignment",
        nargs="+",
        default=[],
        metavar="FILE",
        help="JSON or YAML: bits for each site (Assignment.save); it is looked at too, or is what "
        "the network of --method individual has",
    )


def _add_model_options(command: argparse.ArgumentParser, leave_out: Sequence[str] = ()) -> None:
    _add_source_options(command)
    add_config_options(command, leave_out)


def _add_source_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("model", help="timm model name, or torchvision:NAME")
    command.add_argument("--num-classes", type=int)
    command.add_argument("--img-size", type=int, help="height and width of the images")
    command.add_argument("--in-chans", type=int, help="channels of the images, of timm models")


def _add_board_options(command: argparse.ArgumentParser) -> None:
    group = command.add_argument_group(
        "boards", "print which bit-widths fit on which, as estimated"
    )
    group.add_argument("--board", nargs="+", default=[], metavar="NAME", help="names FINN knows")
    group.add_argument(
        "--fpga-part", nargs="+", default=[], metavar="PART", help="part numbers, as in Vivado"
    )
    group.add_argument("--target-fps", type=int, default=1000, metavar="F", help="frames a second")
    group.add_argument("--clock-ns", type=float, default=5.0, metavar="NS", help="clock period")
    group.add_argument("--memory", choices=list(MEMORIES), default="finn", help="of tables")


def inspect(options: argparse.Namespace) -> None:
    """Build the network with random weights and print its cost.

    Raises:
        MultiQuantError: an unknown model, one that cannot be converted, or an assignment that does
            not fit it.
    """
    net, assignments = _network(options)
    if options.plan:
        print(net.plan, end="\n\n")
    shape = "x".join(map(str, net.input_shape or ()))
    print(f"{options.model} at {shape}, weights {weights_in_words(net)}")
    print(cost(net, assignments=assignments))
    for one in (*assignments, *filter(None, [net.config.assignment])):
        print(f"\n{one.name}: {one}")


def check(options: argparse.Namespace) -> int:
    """Build the network for FPGAs with random weights, print what does not map, and count it.

    Raises:
        MultiQuantError: an unknown model, one that cannot be converted, or an assignment that does
            not fit it.
    """
    net, assignments = _network(options)
    violations = check_finn(net, assignments=assignments)
    kinds = grouped((violation.where, violation.advice) for violation in violations)
    print("\n".join(kinds), end="\n" if kinds else "")
    for form in {coding.running for coding in codings_of(net).values()}:
        if form.is_symmetric:
            continue
        print(
            f"note: a layer takes {form.negated_datatype} weights instead of {form.datatype} where "
            "the norm behind it has negative scales, as training may make them; each project's "
            "README.md names such layers"
        )
    shape = "x".join(map(str, net.input_shape or ()))
    verdict = f"{len(violations)} violation(s) of {len(kinds)} kind(s)"
    verdict = verdict if violations else "maps to one dataflow partition"
    looked_at = f"{', '.join(map(str, net.bits))} bits"
    looked_at += "".join(f", assignment {one.name}" for one in assignments)
    print(f"{options.model} at {shape}, {looked_at}: {verdict}")
    if (options.board or options.fpga_part) and not violations:
        print(_fit(net, options))
    return len(violations)


def allocate(options: argparse.Namespace) -> None:
    """Print the bits of every layer within a budget, beside the uniform network.

    Raises:
        MultiQuantError: an unknown model, one that cannot be converted, or a budget that cannot be
            kept to.
    """
    model = _build(options)
    run_allocation(model, _shape(model, options), options)


def _fit(net: MultiQuantNet, options: argparse.Namespace) -> FitTable:
    """Of random weights and noise: what a trained network takes differs by a few per cent."""
    calibrate(net, [smooth_images((2, *requested_shape(net, None)[1:]))])
    return fit_table(
        net,
        options.board,
        options.fpga_part,
        target_fps=options.target_fps,
        clock_ns=options.clock_ns,
        memory=options.memory,
    )


def _network(options: argparse.Namespace) -> tuple[MultiQuantNet, list[Assignment]]:
    """The network, and assignments to look at besides."""
    assignments = [Assignment.load(path) for path in options.assignment]
    own = None
    if assignments and "assignment" in method_named(options.method).options:
        own, *more = assignments
        if more:
            raise BitWidthError(
                f"--assignment: expected one file with --method {options.method}, whose network "
                f"has it for good, got {len(assignments)}"
            )
        options.bits, assignments = [own.bits], []
    model = _build(options)
    net = multiquantize(
        model,
        config=replace(config_from(options), assignment=own),
        input_shape=_shape(model, options),
        check=False,
    )
    return net, assignments


def _build(options: argparse.Namespace) -> nn.Module:
    library, _, name = options.model.rpartition(":")
    library = _LIBRARIES.get(library, "")
    if not library:
        raise SourceError(
            f"model: expected a timm model name or torchvision:NAME, got {options.model!r}"
        )
    asked = {"num_classes": options.num_classes, "in_chans": options.in_chans}
    given = {option: value for option, value in asked.items() if value is not None}
    for option, only in _FIXED[library].items():
        if given.pop(option, only) != only:
            flag = f"--{option.replace('_', '-')} {asked[option]}"
            raise SourceError(
                f"{flag}: {library} builds models with {only} alone: leave it out, or take a model "
                "of timm"
            )
    return ModelSource(library, name, given).build()


_LIBRARIES = {"": "timm", "timm": "timm", "torchvision": "torchvision", "tv": "torchvision"}
_FIXED: dict[str, dict[str, int]] = {"timm": {}, "torchvision": {"in_chans": 3}}
"""Options that the models of a library do not take, and what they are there."""


def _shape(model: nn.Module, options: argparse.Namespace) -> tuple[int, ...]:
    """The images that were asked for; what was not asked for is as the model declares it."""
    _, channels, *size = infer_input_shape(model)
    if options.in_chans is not None:
        channels = options.in_chans
    if options.img_size is not None:
        size = [options.img_size, options.img_size]
    return (1, channels, *size)
