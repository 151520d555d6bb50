"""All options of an evaluation: the packed network, and the images to score it on."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from brevitas_multiquant.recipes.errors import OptionError
from brevitas_multiquant.recipes.options.data import DataOptions
from brevitas_multiquant.recipes.options.execution import DeviceOptions
from brevitas_multiquant.recipes.options.option import (
    PACKED,
    Parser,
    add_group,
    add_options,
    argument,
    option,
    taken,
)
from brevitas_multiquant.recipes.options.train import add_config_option, parse
from brevitas_multiquant.recipes.options.yaml_files import print_config
from brevitas_multiquant.storage.foreign import require_packed_file
from brevitas_multiquant.storage.shipped import packed_path


@dataclass(frozen=True)
class EvaluateOptions:
    """The options of an evaluation; ``data.dataset`` is None where nobody named any data."""

    packed: str = argument("FILE", PACKED)
    bits: list[int] | None = option(type=int, nargs="+", metavar="B", help="default: all")
    assignment: list[str] | None = option(
        nargs="+", metavar="FILE", help="JSON or YAML with bits for each site: too"
    )
    json: bool = option(False, help="print one JSON document and nothing else")
    data: DataOptions = field(default_factory=DataOptions)
    device: DeviceOptions = field(default_factory=DeviceOptions)

    def check_named(self) -> None:
        """Check that somebody said which images to score on: a network is for one data set.

        Raises:
            OptionError: nobody did, or it does not go with other options.
        """
        if self.data.dataset is None:
            beside = packed_path(self.packed).parent / "args.yaml"
            raise OptionError(
                f"--dataset: expected the data to score {self.packed} on, got none, here or in "
                f"{beside}: give --data-dir DIR, or --dataset NAME as digits or cifar10"
            )
        self.data.check_source()


def evaluate_parser() -> argparse.ArgumentParser:
    """All options of ``evaluate``."""
    parser = Parser(
        "evaluate",
        description="Top-1 per bit-width. The data options default to those of the training run, "
        "read from args.yaml beside the packed file; without it name the data.",
    )
    add_options(parser, EvaluateOptions)
    add_config_option(parser)
    add_group(parser, "data", DataOptions, DeviceOptions)
    parser.set_defaults(img_size=None)  # that of the network
    return parser


def parse_evaluate(argv: Sequence[str] | None = None) -> EvaluateOptions:
    """Parse the options, over those saved beside the packed file where there are any.

    Images are normalised as they were in training, whatever they are now.

    Raises:
        PackedFileError: there is no packed file.
        OptionError: as `brevitas_multiquant.recipes.options.train.parse` does.
    """
    parser = evaluate_parser()
    own = parser.parse_args(argv)
    packed = packed_path(own.packed)
    require_packed_file(packed)
    saved = packed.parent / "args.yaml"
    below = saved if saved.is_file() else None
    parsed = parse(parser, argv, below=below)
    data = taken(DataOptions, parsed)
    if below is not None:
        trained = taken(DataOptions, parse(parser, [str(packed)], below=below))
        mean, std = trained.normalisation
        data = replace(data, mean=data.mean or list(mean), std=data.std or list(std))
    if (own.dataset, own.data_dir) != (None, None) and own.num_classes is None:
        data = replace(data, num_classes=None)  # of the data of the training run
    if own.print_config:
        print_config(parser, {**vars(parsed), **vars(data)})
    parsed.data, parsed.device = data, taken(DeviceOptions, parsed)
    return taken(EvaluateOptions, parsed)
