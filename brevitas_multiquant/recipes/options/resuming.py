"""A run that goes on has the network that it had."""

from pathlib import Path
from typing import Any

from brevitas_multiquant.recipes.errors import CheckpointError
from brevitas_multiquant.recipes.options.train import TrainOptions, parse, train_parser


def options_saved_in(folder: Path) -> TrainOptions:
    """The options that the run in a folder was started with."""
    return TrainOptions.from_parsed(parse(train_parser(), [], below=folder / "args.yaml"))


def check_same_network(asked: TrainOptions, saved: TrainOptions) -> None:
    """Check that nobody asks for another network than the run has.

    Raises:
        CheckpointError: naming the options that differ.
    """
    theirs = vars(saved.model)
    differ = [
        f"--{name.replace('_', '-')} {_shown(value)} instead of {_shown(theirs[name])}"
        for name, value in vars(asked.model).items()
        if _compared(value) != _compared(theirs[name])
    ]
    if asked.average.model_ema and not saved.average.model_ema:
        differ.append("--model-ema, of which the checkpoint has none")
    if differ:
        raise CheckpointError(
            f"--resume {asked.output.resume}: expected the network of that run, got another "
            f"network:\n{'; '.join(differ)}: leave that out, or start a new run with "
            "--experiment NAME"
        )


def _compared(value: Any) -> Any:
    return sorted(value) if isinstance(value, list) else value


def _shown(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) and value else repr(value)
