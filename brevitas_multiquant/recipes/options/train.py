"""All options of a training run, with timm's names where timm has the option; parsed once."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar

from brevitas_multiquant.core.method import METHODS, method_named
from brevitas_multiquant.methods.objectives import options_of_objective
from brevitas_multiquant.recipes.errors import OptionError
from brevitas_multiquant.recipes.options.data import DataOptions, choose_source
from brevitas_multiquant.recipes.options.execution import DeviceOptions, ExecutionOptions
from brevitas_multiquant.recipes.options.model import ModelOptions
from brevitas_multiquant.recipes.options.option import Parser, add_group, taken
from brevitas_multiquant.recipes.options.output import OutputOptions
from brevitas_multiquant.recipes.options.searching import SearchOptions
from brevitas_multiquant.recipes.options.training import (
    AverageOptions,
    ObjectiveOptions,
    OptimisationOptions,
    TargetOptions,
)
from brevitas_multiquant.recipes.options.yaml_files import options_of, parse_over_yaml, print_config

DEFAULT_DATASET = "digits"
"""What is trained on where nobody names data: a first run needs none."""

TITLES = {
    "data": (DataOptions, DeviceOptions),
    "model": (ModelOptions,),
    "training": (OptimisationOptions, TargetOptions, AverageOptions, ObjectiveOptions),
    "execution": (ExecutionOptions,),
    "output": (OutputOptions,),
}
"""What ``--help`` puts together, and under which title."""

OPTION_OF_TASK = {
    "distill": "--no-distill",
    "loss": "--distill-loss",
    "teacher": "--teacher",
    "uniform": "--uniform-share",
}
"""What `objective_of` takes -> the option that asks for it."""


@dataclass(frozen=True)
class TrainOptions:
    """The options of a run, by concern.

    Example:
        >>> options = parse_train(["--lr", "0.01"])
        >>> options.optimisation.lr, options.data.dataset, options.model.bits
        (0.01, 'digits', [2, 4, 6, 8])
    """

    program: ClassVar[str] = "train"
    """The command that takes these options."""

    config: str | None
    data: DataOptions
    device: DeviceOptions
    model: ModelOptions
    optimisation: OptimisationOptions
    targets: TargetOptions
    average: AverageOptions
    objective: ObjectiveOptions
    execution: ExecutionOptions
    output: OutputOptions

    @classmethod
    def from_parsed(cls, parsed: argparse.Namespace) -> Self:
        """Each concern's options out of all of them."""
        concerns: Any = {one.name: one.type for one in fields(cls) if one.name != "config"}
        return cls(parsed.config, **{name: taken(kind, parsed) for name, kind in concerns.items()})

    def flat(self) -> dict[str, Any]:
        """Every option by its own name, as ``args.yaml`` has them."""
        concerns = [vars(value) for name, value in vars(self).items() if name != "config"]
        return {"config": self.config, **{k: v for concern in concerns for k, v in concern.items()}}

    @property
    def folder(self) -> Path:
        """The folder that the options give to the run."""
        return Path(self.output.output) / (
            self.output.experiment or self.model.model.replace("/", "_")
        )

    def check(self) -> None:
        """Check options against each other.

        Raises:
            OptionError: they do not go together.
        """
        self.data.check_source()
        self.optimisation.check()
        self._check_network()
        name = self.output.experiment
        if name and Path(name).name != name:
            raise OptionError(
                f"--experiment: expected the name of one folder below --output, got {name}"
            )

    def _check_network(self) -> None:
        model, sampled = self.model, self.objective.bits_per_step
        if sampled is not None and not 2 < sampled <= len(model.bits):
            raise OptionError(
                "--bits-per-step: expected more than 2, as the largest and the smallest bit-width "
                f"are in every step, and at most the {len(model.bits)} of --bits, got {sampled:g}"
            )
        if model.pretrained and model.initial_checkpoint:
            raise OptionError(
                f"--initial-checkpoint {model.initial_checkpoint}: expected to start from one set "
                "of weights, got --pretrained too: add --no-pretrained, or leave the file out"
            )
        self._check_objective()
        self._check_assignment()
        if (self.objective.quant_noise or 0) > 1:
            share = self.objective.quant_noise
            raise OptionError(f"--quant-noise: expected a share of at most 1, got {share}")
        only_branches = {
            "--assignment": model.assignment is not None,
            "--bits-per-step": sampled,
            "--recompute": self.execution.recompute,
            "--norm-batches": self.objective.norm_batches,
            "--quant-noise": self.objective.quant_noise,
            "--compile": self.execution.compile,
        }
        for name, given in only_branches.items():
            if model.float and given:
                raise OptionError(f"{name}: expected a multi-branch network, got --float")

    def _check_assignment(self) -> None:
        method = method_named(self.model.method)
        if self.model.assignment is not None and "assignment" not in method.options:
            having = [row.name for row in METHODS.values() if "assignment" in row.options]
            raise OptionError(
                f"--assignment: expected one of the methods {having}, whose layers have bits of "
                f"their own for good, got --method {method.name}"
            )

    def _check_objective(self) -> None:
        known = options_of_objective(self.model.method)
        for name in self.objective.of_task:
            if name not in known:
                having = [other for other in METHODS if name in options_of_objective(other)]
                raise OptionError(
                    f"{OPTION_OF_TASK[name]}: expected one of the methods {having}, got --method "
                    f"{self.model.method}"
                )


OptionsT = TypeVar("OptionsT", bound=TrainOptions)


def train_parser() -> argparse.ArgumentParser:
    """All options of ``train``."""
    parser = Parser("train", description="Train one network for every bit-width.")
    add_config_option(parser)
    for title, concerns in TITLES.items():
        add_group(parser, title, *concerns)
    return parser


def add_config_option(parser: argparse.ArgumentParser) -> None:
    """``-c FILE``, which `parse` reads, and ``--print-config``, which writes one."""
    parser.add_argument(
        "-c",
        "--config",
        metavar="FILE",
        help="YAML options, below the command line: a file, or the name of a shipped one",
    )
    parser.add_argument(
        "--print-config",
        action="store_true",
        help="print all options, after file and command line, as YAML that -c reads, and exit",
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
    of_others = {*options_of(train_parser()), *(one.name for one in fields(SearchOptions))}
    parsed = parse_over_yaml(parser, argv, below, passed_over=of_others)
    parsed.dataset, parsed.data_dir = choose_source(parser.parse_args(argv), parsed)
    return parsed


def parse_train(argv: Sequence[str] | None = None) -> TrainOptions:
    """Parse the training options; ``--resume DIR`` continues with the options saved in DIR.

    Raises:
        OptionError: options that do not go together.
        OptionError, MissingFileError: from the YAML file, as `parse` does.
    """
    return parse_options(TrainOptions, train_parser(), argv)


def parse_options(
    kind: type[OptionsT], parser: argparse.ArgumentParser, argv: Sequence[str] | None
) -> OptionsT:
    """Parse the options of a recipe that trains, as `parse_train` does.

    Args:
        kind: of the options.
        parser: has all of them.
        argv: the command line, ``sys.argv`` by default.
    """
    own = parser.parse_args(argv)
    saved = taken(OutputOptions, own).saved_options(own.config)
    parsed = parse(parser, argv, below=saved)
    if saved is not None:
        folder = saved.parent.resolve()
        parsed.output, parsed.experiment = str(folder.parent), folder.name
    if parsed.dataset is None:
        parsed.dataset = DEFAULT_DATASET
    options = kind.from_parsed(parsed)
    options.check()
    if own.print_config:
        print_config(parser, options.flat())
    return options
