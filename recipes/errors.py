"""Named errors of the recipes: one line for the user, and an exit status."""

import os
import sys
from collections.abc import Callable

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


class TrainingError(MultiQuantError):
    """A run that cannot go on."""


USAGE_ERRORS = (
    *(OptionError, UnknownDatasetError, ExperimentExistsError),
    *(BitWidthError, SelectionError, ConfigError),
)


def exit_code(recipe: Callable[[], object]) -> int:
    """Run a recipe: 0, or a one-line error and 2 for wrong usage, 1 for any other named error."""
    try:
        recipe()
    except MultiQuantError as error:
        if os.environ.get("RANK", "0") == "0":
            print(f"{type(error).__name__}: {' '.join(str(error).split())}", file=sys.stderr)
        return 2 if isinstance(error, USAGE_ERRORS) else 1
    return 0
