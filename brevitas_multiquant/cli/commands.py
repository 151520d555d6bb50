"""The commands, each a module with a ``main``; what one of them needs is imported when it runs."""

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module

from brevitas_multiquant.cli.allocate import allocate_parser
from brevitas_multiquant.cli.check import check_parser
from brevitas_multiquant.cli.inspect import inspect_parser
from brevitas_multiquant.errors import MissingPackageError
from brevitas_multiquant.recipes.errors import exit_code
from brevitas_multiquant.recipes.options.demo import demo_parser
from brevitas_multiquant.recipes.options.evaluate import evaluate_parser
from brevitas_multiquant.recipes.options.export import export_parser
from brevitas_multiquant.recipes.options.option import PROGRAM, Parser
from brevitas_multiquant.recipes.options.plot import plot_parser
from brevitas_multiquant.recipes.options.predict import predict_parser
from brevitas_multiquant.recipes.options.search import search_parser
from brevitas_multiquant.recipes.options.segment import segment_parser
from brevitas_multiquant.recipes.options.train import train_parser
from brevitas_multiquant.version import __version__

CLI, RECIPES = "brevitas_multiquant.cli", "brevitas_multiquant.recipes"


@dataclass(frozen=True)
class Command:
    """A word after ``brevitas-multiquant``.

    Args:
        help: one line of ``brevitas-multiquant --help``.
        parser: makes the parser of all its options.
        module: has ``main(argv) -> exit status``; ``python -m`` runs it, too.
    """

    help: str
    parser: Callable[[], argparse.ArgumentParser]
    module: str


COMMANDS = {
    "inspect": Command("what a model would become and cost", inspect_parser, f"{CLI}.inspect"),
    "check": Command("what keeps a model from an FPGA", check_parser, f"{CLI}.check"),
    "allocate": Command("bits of every layer in a budget", allocate_parser, f"{CLI}.allocate"),
    "train": Command("one network for every bit-width", train_parser, f"{RECIPES}.train"),
    "search": Command("learn the bits of every layer", search_parser, f"{RECIPES}.search"),
    "segment": Command("a class for every pixel", segment_parser, f"{RECIPES}.segment"),
    "evaluate": Command("accuracy at each bit-width", evaluate_parser, f"{RECIPES}.evaluate"),
    "predict": Command("the likeliest classes of images", predict_parser, f"{RECIPES}.predict"),
    "export": Command("QONNX, ONNX or FINN, verified", export_parser, f"{RECIPES}.export"),
    "demo": Command("a page to try a network on", demo_parser, f"{RECIPES}.demo"),
    "plot": Command("pages and figures of runs", plot_parser, f"{RECIPES}.plot"),
}


def parsers() -> dict[str, argparse.ArgumentParser]:
    """Command -> a new parser of its options.

    Example:
        >>> parsers()["export"].prog
        'brevitas-multiquant export'
    """
    return {name: command.parser() for name, command in COMMANDS.items()}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Returns:
        0; 2 for wrong usage; 1 for any other named error, and where ``check`` finds a network that
        does not map; 130 and 143 after a signal.
    """
    given = sys.argv[1:] if arguments is None else list(arguments)
    name = program_parser().parse_args(given[:1]).command
    try:
        command = import_module(COMMANDS[name].module)
    except ModuleNotFoundError as error:
        missing = error
        return exit_code(lambda: _refuse(name, missing))
    return int(command.main(given[1:]))


def program_parser() -> argparse.ArgumentParser:
    """The parser of the first word."""
    parser = Parser(
        description="Convolutional networks that run at any bit-width, from PyTorch to the FPGA.",
        epilog=f"{PROGRAM} COMMAND --help lists the options of a command.",
    )
    parser.add_argument("--version", action="version", version=f"{PROGRAM} {__version__}")
    commands = parser.add_subparsers(
        dest="command", required=True, metavar="COMMAND", title="commands"
    )
    for name, command in COMMANDS.items():
        commands.add_parser(name, help=command.help, add_help=False)
    return parser


def _refuse(name: str, missing: ModuleNotFoundError) -> None:
    raise MissingPackageError(
        f"{name}: expected the package {missing.name}, which is not installed: "
        f'pip install "{PROGRAM}[recipes]"'
    ) from missing
