"""Command-line options with timm's names, and YAML files that stand below the command line."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from recipes.errors import MissingFileError, OptionError

ENVIRONMENT = "environment"
NEVER_FROM_FILE = ("config", "resume", "overwrite")


def key_value(text: str) -> tuple[str, Any]:
    """``name=value`` with the value read as YAML: ``drop_rate=0.1`` is ``("drop_rate", 0.1)``."""
    name, separator, value = text.partition("=")
    if not name or not separator:
        raise argparse.ArgumentTypeError(f"expected NAME=VALUE, got {text!r}")
    return name, yaml.safe_load(value)


def positive(text: str) -> int:
    """An integer of at least 1."""
    if (value := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"expected an integer of at least 1, got {text}")
    return value


def selection(text: str) -> str | dict[int, list[int]]:
    """A strategy's name, or a mapping written as YAML: ``{2: [0], 4: [0, 1]}``."""
    value = yaml.safe_load(text)
    if not isinstance(value, str | dict):
        raise argparse.ArgumentTypeError(f"expected a name or a mapping, got {text!r}")
    return value


def add_data_options(parser: argparse.ArgumentParser) -> None:
    """Which images to read and how."""
    add = parser.add_argument_group("data").add_argument
    add("--dataset", default="digits", help="digits, cifar10, cifar100, or a timm data set name")
    add("--data-dir", metavar="DIR", help="folder of the data set: class folders, or SPLIT.tar")
    add("--dataset-download", action="store_true", help="fetch the data set if it is not there")
    add("--train-split", default="train", metavar="NAME")
    add("--val-split", default="validation", metavar="NAME")
    add("--img-size", type=positive, default=32, metavar="PIXELS")
    add("--mean", type=float, nargs=3, metavar="M", help="channel means, pixels in [0, 1]")
    add("--std", type=float, nargs=3, metavar="S", help="channel standard deviations")
    add("--hflip", type=float, metavar="P", help="how often to mirror (default 0.5, digits 0)")
    add("--crop-padding", type=int, metavar="PIXELS", help="random crop (default img-size / 8)")
    add("--subset", type=positive, metavar="N", help="train on N images of a fixed permutation")
    add("--subset-seed", type=int, default=0, metavar="SEED", help="seed of that permutation")
    add("--cache-limit-mb", type=positive, default=1024, help="keep images in memory up to here")
    add("-b", "--batch-size", type=positive, default=128, help="images a step on each process")
    add("--workers", type=int, default=2, help="loader processes, where images are not in memory")
    add("--seed", type=int, default=42)


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Which float network to start from, and the multi-branch network to make of it."""
    add = parser.add_argument_group("model").add_argument
    add("--model", default="cifar_resnet8", help="a timm name, or tv:NAME of torchvision")
    add("--model-kwargs", type=key_value, nargs="*", default=[], metavar="NAME=VALUE")
    add("--num-classes", type=positive, help="default: as many as the data set has")
    add("--pretrained", action="store_true", help="start from the published float weights")
    add("--initial-checkpoint", metavar="FILE", help="start from the float weights in a file")
    add("--bits", type=int, nargs="+", default=[2, 4, 6, 8], metavar="B")
    add("--selection", type=selection, default="amortized", help="amortized, serial or a mapping")
    add("--profile", choices=["paper", "finn"], default="paper", help="finn: for FPGAs")
    add("--merge", choices=["mean", "sum"], default="mean", help="of the branch outputs")
    add("--branch-init", choices=["copy", "shuffle"], help="default: copy trained weights only")
    add("--float", action="store_true", help="train the float network by the same recipe")


def add_training_options(parser: argparse.ArgumentParser) -> None:
    """Loss, optimizers, schedules."""
    add = parser.add_argument_group("training").add_argument
    add("--epochs", type=positive, default=200)
    add("--lr", type=float, default=0.1, help="SGD, all parameters but the ranges")
    add("--momentum", type=float, default=0.9)
    add("--weight-decay", type=float, default=1e-4)
    add("--range-lr", type=float, default=1e-4, help="Adam without decay, the quantizer ranges")
    add("--sched", choices=["cosine", "step"], default="cosine")
    add("--sched-on-updates", action="store_true", help="change the rate at every step")
    add("--decay-milestones", type=int, nargs="+", default=[100, 150], help="epochs, for step")
    add("--decay-rate", type=float, default=0.1, help="factor at each milestone")
    add("--warmup-epochs", type=int, default=0)
    add("--min-lr", type=float, default=0.0, help="last rate of the cosine")
    add("--smoothing", type=float, default=0.0, help="label smoothing")
    add("--no-distill", action="store_true", help="cross-entropy only, at every bit-width")
    add("--distill-loss", choices=["sum", "halved"], default="sum", help="CE + KD or its half")
    add("--amp", action="store_true", help="bfloat16 where it is safe")
    add("--channels-last", action="store_true")


def add_output_options(parser: argparse.ArgumentParser) -> None:
    """Where results go, and where to continue from."""
    add = parser.add_argument_group("output").add_argument
    add("--output", default="output", metavar="DIR")
    add("--experiment", metavar="NAME", help="folder below --output (default: the model's name)")
    add("--resume", metavar="DIR", help="continue the run in this folder, with its own options")
    add("--overwrite", action="store_true", help="replace the results in the folder of the run")
    add("--log-interval", type=positive, default=10, metavar="STEPS")


def train_parser() -> argparse.ArgumentParser:
    """All options of ``recipes/train.py``."""
    parser = argparse.ArgumentParser(
        prog="train.py", description="Train one network for every bit-width.", allow_abbrev=False
    )
    add_config_option(parser)
    add_data_options(parser)
    add_model_options(parser)
    add_training_options(parser)
    add_output_options(parser)
    return parser


def add_config_option(parser: argparse.ArgumentParser) -> None:
    """``-c FILE``; `parse` reads it."""
    parser.add_argument(
        "-c", "--config", metavar="FILE", help="YAML options, below the command line"
    )


def parse_train(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the training options; ``--resume DIR`` continues with the options saved in DIR.

    Raises:
        OptionError, MissingFileError: from the YAML file, as `parse` does.
    """
    parser = train_parser()
    args = parse(parser, argv)
    if args.resume is None:
        return args
    folder = Path(args.resume)
    args = parse(parser, argv, below=folder / "args.yaml")
    args.output, args.experiment = str(folder.parent), folder.name
    return args


def parse(
    parser: argparse.ArgumentParser,
    argv: Sequence[str] | None = None,
    below: Path | None = None,
) -> argparse.Namespace:
    """Parse the command line over the YAML file that ``-c`` names, or without one over ``below``.

    Args:
        parser: has an option ``--config``.
        argv: the command line, ``sys.argv`` by default.
        below: a YAML file to read where the command line names none.

    Raises:
        OptionError: keys that no recipe knows.
        MissingFileError: no such YAML file.
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    config = parser.parse_args(argv).config
    path = Path(config) if config else below
    if path is None:
        return parser.parse_args(argv)
    return parser.parse_args([*yaml_arguments(parser, path), *argv])


def yaml_arguments(parser: argparse.ArgumentParser, path: Path) -> list[str]:
    """A YAML mapping as the command line that says the same, so that types are checked alike.

    Every recipe reads a training configuration and passes over what is not its own.
    """
    actions = options_of(parser)
    values = {key.replace("-", "_"): value for key, value in read_yaml(path).items()}
    unknown = sorted(set(values) - set(actions) - set(options_of(train_parser())) - {ENVIRONMENT})
    if unknown:
        raise OptionError(
            f"{path}: expected option names as keys, got unknown {unknown}: correct or remove "
            f"them; recipes/train.py --help lists the options"
        )
    return [
        argument
        for key, value in values.items()
        if key in actions and key not in NEVER_FROM_FILE
        for argument in _yaml_argument(actions[key], value)
    ]


def options_of(parser: argparse.ArgumentParser) -> dict[str, argparse.Action]:
    """Option name, with underscores, -> what argparse does with it."""
    return {action.dest: action for action in parser._actions if action.option_strings}


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file.

    Raises:
        MissingFileError: there is no such file.
        OptionError: it is not a mapping.
    """
    if not path.is_file():
        raise MissingFileError(f"expected a YAML file of options at {path}, found none")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        message = " ".join(str(error).split())
        raise OptionError(f"{path}: expected YAML, got {message}") from None
    if not isinstance(values, dict):
        raise OptionError(f"{path}: expected a mapping of option names, got {values!r}")
    return values


def _yaml_argument(action: argparse.Action, value: Any) -> list[str]:
    flag = action.option_strings[-1]
    if value is None or (action.nargs == 0 and not value):
        return []
    if action.nargs == 0:
        return [flag]
    if action.dest == "model_kwargs":
        pairs = value.items() if isinstance(value, dict) else value
        return [flag, *(f"{name}={yaml_text(item)}" for name, item in pairs)]
    if isinstance(value, list | tuple):
        return [flag, *(str(item) for item in value)]
    return [f"{flag}={yaml_text(value)}"]


def yaml_text(value: Any) -> str:
    """A value on one line, so that reading it as YAML gives it back; a string stays itself."""
    if isinstance(value, str):
        return value
    return yaml.safe_dump(value, default_flow_style=True).removesuffix("...\n").strip()
