"""Named errors of the recipes and the command line: one line for the user, and an exit status."""

import os
import sys
from collections.abc import Callable

import brevitas_multiquant
from brevitas_multiquant.core.optional_packages import missing
from brevitas_multiquant.errors import (
    BitWidthError,
    ConfigError,
    MultiQuantError,
    SelectionError,
)


class OptionError(MultiQuantError):
    """An option, or a combination of options, that no recipe accepts."""


class UnknownDatasetError(MultiQuantError):
    """A data set name that no reader knows."""


class MissingFileError(MultiQuantError):
    """A file or folder that a recipe needs and that is not there."""


class DatasetError(MultiQuantError):
    """Images or labels that do not fit the options."""


class ExperimentExistsError(MultiQuantError):
    """A new run into a folder that holds something already."""


class CheckpointError(MultiQuantError):
    """A checkpoint that is damaged, of another version, or of another run."""


class OutputError(MultiQuantError):
    """A result that cannot be written."""


class LaunchError(MultiQuantError):
    """A launcher that started something else than it was asked for."""


class TrainingError(MultiQuantError):
    """A run that cannot go on."""


class NonFiniteError(TrainingError):
    """Numbers that are infinite or not a number."""


class Interrupted(Exception):  # noqa: N818  no error: the run stopped because it was asked to
    """A signal asked the run to stop; what a resumed run needs is saved."""

    def __init__(self, signal_number: int, resume: str | None = None) -> None:
        self.signal_number = signal_number
        text = f"stopped by signal {signal_number}"
        if resume is not None:
            text += f"; a checkpoint is written; go on with: {resume}"
        super().__init__(text)


ITEM = "\n  - "
"""What starts an item of a list in a message."""

USAGE_ERRORS = (
    *(OptionError, UnknownDatasetError, ExperimentExistsError, LaunchError),
    *(BitWidthError, SelectionError, ConfigError),
)


def exit_code(recipe: Callable[[], object]) -> int:
    """Run a recipe and say in one line what stopped it.

    Returns:
        0; 2 for wrong usage; 1 for any other named error, a file that cannot be written, or where
        the recipe returns False; 128 and the signal's number, as shells have it, after a signal:
        130 SIGINT, 143 SIGTERM.
    """
    try:
        return int(recipe() is False)
    except MultiQuantError as error:
        say(type(error).__name__, error)
        return 2 if isinstance(error, USAGE_ERRORS) else 1
    except ModuleNotFoundError as error:
        if not error.name or error.name.partition(".")[0] == brevitas_multiquant.__name__:
            raise  # no package that anybody could install
        say("MissingPackageError", missing("this program", error.name, "recipes"))
        return 1
    except OSError as error:
        say("OutputError", error)
        return 1
    except Interrupted as stop:
        say("Interrupted", stop)
        return 128 + stop.signal_number
    except KeyboardInterrupt:
        say("Interrupted", "stopped at once; the last checkpoint stands")
        return 130


def say(kind: str, message: object) -> None:
    """One line for the user, and one for each item of a list; from the first process alone."""
    if os.environ.get("RANK", "0") == "0":
        lines = (" ".join(item.split()) for item in str(message).split(ITEM))
        print(f"{kind}: {ITEM.join(lines)}", file=sys.stderr)
