"""Why a forward could not be traced, and where in its author's code."""

import traceback
from pathlib import Path

import torch

_NOT_THE_AUTHORS = (str(Path(torch.__file__).parent), str(Path(__file__).parents[1]), "<")


def first_line(error: BaseException) -> str:
    """Type and first line of an error's message.

    Example:
        >>> first_line(ValueError("too large: 3"))
        'ValueError: too large: 3'
    """
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"


def cause_of(error: BaseException) -> str:
    """`first_line`, with the file, line and code of the model's author that it came from."""
    place = _place(traceback.extract_tb(error.__traceback__))
    return f"{first_line(error)}; at {place}" if place else first_line(error)


def place_of_call() -> str:
    """File, line and code of the model's author that runs at the moment."""
    return _place(traceback.extract_stack())


def _place(frames: traceback.StackSummary) -> str:
    authors = [frame for frame in frames if not frame.filename.startswith(_NOT_THE_AUTHORS)]
    last = authors[-1] if authors else None
    return f"{Path(last.filename).name}:{last.lineno}: {last.line}" if last else ""
