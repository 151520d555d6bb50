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
    frames = traceback.extract_tb(error.__traceback__)
    authors = [frame for frame in frames if not frame.filename.startswith(_NOT_THE_AUTHORS)]
    if not authors:
        return first_line(error)
    last = authors[-1]
    return f"{first_line(error)}; at {Path(last.filename).name}:{last.lineno}: {last.line}"
