"""The options of a run that goes on: its own, with those of the command line above them."""

import argparse
from pathlib import Path
from typing import Any

from brevitas_multiquant.recipes.errors import CheckpointError, MissingFileError, OptionError

OF_THE_NETWORK = (
    *("model", "model_kwargs", "float", "bits", "selection", "profile", "weights", "merge", "head"),
    *("pretrained", "initial_checkpoint", "branch_init"),
)
"""Options that made the network which the checkpoint holds: they cannot change any more."""


def saved_options(own: argparse.Namespace) -> Path:
    """The ``args.yaml`` of the run to resume.

    Raises:
        MissingFileError: there is none.
        OptionError: options beside ``--resume`` that would be passed over.
    """
    folder = Path(own.resume)
    if not (folder / "args.yaml").is_file():
        raise MissingFileError(
            f"--resume: expected a run with its args.yaml in {folder}, found none: a run that "
            "was stopped before that left nothing, start it again"
        )
    given = {"--config": own.config, "--overwrite": own.overwrite}
    for name in [name for name, value in given.items() if value]:
        raise OptionError(
            f"{name}: expected none beside --resume, which goes on with the options saved in "
            f"{folder / 'args.yaml'}: give those that are to change on the command line"
        )
    return folder / "args.yaml"


def check_same_network(args: argparse.Namespace, saved: argparse.Namespace) -> None:
    """Check that nobody asks for another network than the run has.

    Raises:
        CheckpointError: naming the options that differ.
    """
    differ = [
        f"--{option.replace('_', '-')} {_shown(getattr(args, option))} instead of "
        f"{_shown(getattr(saved, option))}"
        for option in OF_THE_NETWORK
        if _compared(args, option) != _compared(saved, option)
    ]
    if args.model_ema and not saved.model_ema:
        differ.append("--model-ema, of which the checkpoint has none")
    if differ:
        raise CheckpointError(
            f"--resume {args.resume}: expected the network of that run, got another network:\n"
            f"{'; '.join(differ)}: leave that out, or start a new run with --experiment NAME"
        )


def _compared(args: argparse.Namespace, option: str) -> Any:
    value = getattr(args, option)
    return sorted(value) if isinstance(value, list) else value


def _shown(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) and value else repr(value)
