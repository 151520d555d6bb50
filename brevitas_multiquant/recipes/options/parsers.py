"""Command-line options, with timm's names where timm has the option."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from brevitas_multiquant.core.grids import WEIGHT_FORMATS
from brevitas_multiquant.recipes.errors import OptionError
from brevitas_multiquant.recipes.options.data import (
    TRAIN_SPLIT,
    VAL_SPLIT,
    check_source,
    choose_source,
)
from brevitas_multiquant.recipes.options.types import (
    fraction,
    key_value,
    not_negative,
    number,
    number_from_zero,
    positive,
    positive_number,
    selection,
)
from brevitas_multiquant.recipes.options.yaml_files import options_of, parse_over_yaml
from brevitas_multiquant.recipes.run.resuming import saved_options
from brevitas_multiquant.recipes.run.tracking import TRACKERS

SWITCH = argparse.BooleanOptionalAction

DEFAULT_DATASET = "digits"
"""What is trained on where nobody names data: a first run needs none."""


def add_data_options(parser: argparse.ArgumentParser) -> None:
    """Which images to read and how."""
    add = parser.add_argument_group("data").add_argument
    add("--dataset", help="digits, cifar10, cifar100, synthetic, a timm name, or '' for a folder")
    add("--data-dir", metavar="DIR", help="folder of the data set: class folders, or SPLIT.tar")
    add("--dataset-download", action="store_true", help="fetch the data set if it is not there")
    add("--train-split", default=TRAIN_SPLIT, metavar="NAME", help="(default train, training)")
    add("--val-split", default=VAL_SPLIT, metavar="NAME", help="(default val, validation, test...)")
    add("--num-classes", type=positive, help="default: as many as the data set has")
    add("--img-size", type=positive, default=32, metavar="PIXELS")
    add("--mean", type=number, nargs=3, metavar="M", help="channel means, pixels in [0, 1]")
    add("--std", type=positive_number, nargs=3, metavar="S", help="channel standard deviations")
    add("--hflip", type=fraction, metavar="P", help="how often to mirror (default 0.5, digits 0)")
    add("--crop-padding", type=not_negative, metavar="PIXELS", help="(default img-size / 8)")
    add("--subset", type=positive, metavar="N", help="train on N images of a fixed permutation")
    add("--subset-seed", type=not_negative, default=0, metavar="SEED", help="of that permutation")
    add("--cache-limit-mb", type=positive, default=1024, help="keep images in memory up to here")
    add("-b", "--batch-size", type=positive, default=128, help="images a step on each process")
    add("--workers", type=not_negative, default=2, help="loader processes, for images not cached")
    add("--seed", type=not_negative, default=42)
    add("--device", choices=["auto", "cpu"], default="auto", help="auto: what Accelerate finds")


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Which float network to start from, and the multi-branch network to make of it."""
    add = parser.add_argument_group("model").add_argument
    add("--model", default="cifar_resnet8", help="a timm name, or tv:NAME of torchvision")
    add("--model-kwargs", type=key_value, nargs="*", default=[], metavar="NAME=VALUE")
    add("--pretrained", action=SWITCH, default=False, help="start from published float weights")
    add("--initial-checkpoint", metavar="FILE", help="start from the float weights in a file")
    add("--bits", type=int, nargs="+", default=[2, 4, 6, 8], metavar="B")
    add("--selection", type=selection, default="amortized", help="amortized, serial or a mapping")
    add("--profile", choices=["paper", "finn"], default="paper", help="finn: for FPGAs")
    add("--weights", choices=list(WEIGHT_FORMATS), default="odd", help="integers of the branches")
    add("--merge", choices=["mean", "sum"], default="mean", help="of the branch outputs")
    add("--head", metavar="NAME", help="module from which on all is float (default: the last)")
    add("--branch-init", choices=["copy", "shuffle"], help="default: copy trained weights only")
    add("--float", action="store_true", help="train the float network by the same recipe")


def add_training_options(parser: argparse.ArgumentParser) -> None:
    """Loss, optimizers, schedules."""
    add = parser.add_argument_group("training").add_argument
    add("--epochs", type=positive, default=200)
    add("--lr", type=positive_number, default=0.1, help="SGD, all parameters but the ranges")
    add("--momentum", type=fraction, default=0.9)
    add("--weight-decay", type=number_from_zero, default=1e-4)
    add("--range-lr", type=positive_number, default=1e-4, help="Adam without decay, the ranges")
    add("--sched", choices=["cosine", "step"], default="cosine")
    add("--sched-on-updates", action="store_true", help="change the rate at every step")
    add("--decay-milestones", type=positive, nargs="+", default=[100, 150], help="epochs, for step")
    add("--decay-rate", type=positive_number, default=0.1, help="factor at each milestone")
    add("--warmup-epochs", type=not_negative, default=0)
    add("--min-lr", type=number_from_zero, default=0.0, help="last rate of the cosine")
    add("--smoothing", type=fraction, default=0.0, help="label smoothing")
    add("--mixup", type=number_from_zero, default=0.0, metavar="ALPHA", help="0: none")
    add("--cutmix", type=number_from_zero, default=0.0, metavar="ALPHA", help="0: none")
    add("--mixup-off-epoch", type=not_negative, default=0, metavar="N", help="none from here on")
    add("--model-ema", action="store_true", help="evaluate and keep a moving average")
    add("--model-ema-decay", type=fraction, default=0.9998)
    add("--model-ema-warmup", action="store_true", help="average over fewer steps at the start")
    add("--no-distill", action="store_true", help="cross-entropy only, at every bit-width")
    add("--distill-loss", choices=["sum", "halved"], default="sum", help="CE + KD or its half")
    add("--bits-per-step", type=positive_number, metavar="N", help="that run, on average")
    add("--norm-batches", type=not_negative, metavar="N", help="renew norms before evaluation")


def add_execution_options(parser: argparse.ArgumentParser) -> None:
    """How a step is computed; the network that comes out is meant to be the same."""
    add = parser.add_argument_group("execution").add_argument
    add("--grad-accum-steps", type=positive, default=1, metavar="N", help="batches an update")
    add("--amp", nargs="?", const="bf16", choices=["bf16"], help="mixed precision")
    add("--channels-last", action=SWITCH, default=True, help="memory format: faster on CPU and GPU")
    add("--compile", action="store_true", help="compile what training steps run")
    add("--recompute", action="store_true", help="run branches again in backward: less memory")


def add_output_options(parser: argparse.ArgumentParser) -> None:
    """Where results go, and where to continue from."""
    add = parser.add_argument_group("output").add_argument
    add("--output", default="output", metavar="DIR")
    add("--experiment", metavar="NAME", help="folder below --output (default: the model's name)")
    add("--resume", metavar="DIR", help="continue the run in this folder, with its own options")
    add("--overwrite", action="store_true", help="replace the results in the folder of the run")
    add("--checkpoint-hist", type=positive, default=2, metavar="N", help="checkpoints to keep")
    add("--recovery-interval", type=not_negative, default=0, metavar="STEPS", help="0: epochs only")
    add("--log-interval", type=positive, default=10, metavar="STEPS")
    add("--log-with", choices=TRACKERS, help="a tracker, through Accelerate")
    add("--dry-run", action="store_true", help="print cost, time and memory of a step, and stop")


def train_parser() -> argparse.ArgumentParser:
    """All options of ``recipes/train.py``."""
    parser = argparse.ArgumentParser(
        prog="train.py", description="Train one network for every bit-width.", allow_abbrev=False
    )
    add_config_option(parser)
    add_data_options(parser)
    add_model_options(parser)
    add_training_options(parser)
    add_execution_options(parser)
    add_output_options(parser)
    return parser


def add_config_option(parser: argparse.ArgumentParser) -> None:
    """``-c FILE``; `parse` reads it."""
    parser.add_argument(
        "-c", "--config", metavar="FILE", help="YAML options, below the command line"
    )


def parse(
    parser: argparse.ArgumentParser,
    argv: Sequence[str] | None = None,
    below: Path | None = None,
) -> argparse.Namespace:
    """`parse_over_yaml` for any recipe: each reads a training configuration and takes its own.

    ``dataset`` and ``data_dir`` are as `choose_source` has them: None where neither is given.

    Raises:
        OptionError, MissingFileError: from the YAML file.
    """
    args = parse_over_yaml(parser, argv, below, passed_over=options_of(train_parser()))
    args.dataset, args.data_dir = choose_source(parser.parse_args(argv), args)
    return args


def parse_train(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the training options; ``--resume DIR`` continues with the options saved in DIR.

    Raises:
        OptionError: options that do not go together.
        OptionError, MissingFileError: from the YAML file, as `parse` does.
    """
    parser = train_parser()
    own = parser.parse_args(argv)
    args = parse(parser, argv) if own.resume is None else resumed(parser, argv, own)
    if args.dataset is None:
        args.dataset = DEFAULT_DATASET
    check_source(args)
    check_together(args)
    return args


def resumed(
    parser: argparse.ArgumentParser, argv: Sequence[str] | None, own: argparse.Namespace
) -> argparse.Namespace:
    """The options saved in the folder of a run, below those of the command line.

    Raises:
        OptionError, MissingFileError: as `parse_train`.
    """
    args = parse(parser, argv, below=saved_options(own))
    folder = Path(args.resume).resolve()
    args.output, args.experiment = str(folder.parent), folder.name
    return args


def check_together(args: argparse.Namespace) -> None:
    """Check options against each other.

    Raises:
        OptionError: they do not go together.
    """
    if args.warmup_epochs >= args.epochs:
        raise OptionError(
            f"--warmup-epochs: expected fewer than the {args.epochs} epochs, got "
            f"{args.warmup_epochs}"
        )
    if args.min_lr > args.lr:
        raise OptionError(f"--min-lr: expected at most --lr {args.lr}, got {args.min_lr}")
    sampled = args.bits_per_step
    if sampled is not None and not 2 < sampled <= len(args.bits):
        raise OptionError(
            "--bits-per-step: expected more than 2, as the largest and the smallest bit-width are "
            f"in every step, and at most the {len(args.bits)} of --bits, got {sampled:g}"
        )
    if args.pretrained and args.initial_checkpoint:
        raise OptionError(
            f"--initial-checkpoint {args.initial_checkpoint}: expected to start from one set of "
            "weights, got --pretrained too: add --no-pretrained, or leave the file out"
        )
    only_branches = {"--bits-per-step": sampled, "--recompute": args.recompute}
    only_branches |= {"--norm-batches": args.norm_batches}
    for name, given in (only_branches | {"--compile": args.compile}).items():
        if args.float and given:
            raise OptionError(f"{name}: expected a multi-branch network, got --float")
    if args.experiment and Path(args.experiment).name != args.experiment:
        raise OptionError(
            f"--experiment: expected the name of one folder below --output, got {args.experiment}"
        )
