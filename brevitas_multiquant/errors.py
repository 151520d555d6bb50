"""Named errors. Each says what was expected, what was got, where, and what to do."""

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Any


class MultiQuantError(ValueError):
    """Base of every error that this package raises at its users."""


class BitWidthError(MultiQuantError):
    """A candidate list or an active bit-width that the network cannot have."""


class ConcurrentUseError(MultiQuantError):
    """A bit-width switched by one thread while another runs the same network."""


class NetworkError(MultiQuantError):
    """Something else than a `MultiQuantNet`, given to a function that takes one."""


class PrecisionError(MultiQuantError):
    """A network whose parameters are not fp32, where the result has to be exact."""


class SelectionError(MultiQuantError):
    """A branch selection that does not fit the candidate bit-widths."""


class ConfigError(MultiQuantError):
    """An option outside its allowed values, or a configuration of another version."""


class TraceError(MultiQuantError):
    """The model's forward cannot be traced into a graph."""


class UnsupportedModelError(MultiQuantError):
    """The model cannot be rewritten; ``reasons`` holds every reason found, not only the first."""

    def __init__(self, model: str, reasons: list[str]) -> None:
        self.reasons = reasons
        listed = "".join(f"\n  - {reason}" for reason in reasons)
        super().__init__(f"{model} cannot become a multi-branch network:{listed}")


class UntracedWarning(UserWarning):
    """A part of the model's forward could not be traced: what that costs is said at once."""


class InputSizeError(MultiQuantError):
    """Images of another size than the network was converted for, where the model depends on it."""


class SelfCheckError(MultiQuantError):
    """With quantizers off, a branch does not reproduce the original model."""


class CalibrationError(MultiQuantError):
    """Ranges cannot be initialised from the data given, or have not been initialised at all."""


class SourceError(MultiQuantError):
    """A network whose float architecture cannot be rebuilt by name."""


class PackedFileError(MultiQuantError):
    """A packed file that is missing, damaged, of another version, or of another network."""


class HubError(MultiQuantError):
    """A folder or repository that cannot be written, uploaded, found or read."""


class ExportError(MultiQuantError):
    """An exported file that does not reproduce the network; nothing was left on disk."""


def did_you_mean(name: object, known: Iterable[str]) -> str:
    """How a message ends where known names come near the one that was given.

    Example:
        >>> did_you_mean("resnet19", ["resnet18", "vgg11"]), did_you_mean("x", ["resnet18"])
        ('; did you mean resnet18?', '')
    """
    near = get_close_matches(str(name), known, n=3)
    return f"; did you mean {' or '.join(near)}?" if near else ""


def grouped(problems: Iterable[tuple[str, str]]) -> list[str]:
    """A line for each kind of problem: where it is, or in how many places and in which the first.

    Args:
        problems: (module path, what is wrong and what to do).

    Example:
        >>> grouped([("a", "use ReLU"), ("b", "use ReLU"), ("c", "use zeros")])
        ['2 places (a, b): use ReLU', 'c: use zeros']
    """
    places: dict[str, list[str]] = {}
    for where, advice in problems:
        places.setdefault(advice, []).append(where)
    lines = []
    for advice, found in places.items():
        first = ", ".join(found[:NAMED_PLACES])
        rest = ", ..." if len(found) > NAMED_PLACES else ""
        head = first if len(found) == 1 else f"{len(found)} places ({first}{rest})"
        lines.append(f"{head}: {advice}")
    return lines


NAMED_PLACES = 3
"""Of equal problems, this many are named."""


class FinnMappingError(ExportError):
    """A network that dataflow hardware cannot compute; ``problems`` holds every reason found.

    Args:
        setting: what was exported: ``"4 bits"``, or ``"assignment 4b-1f3a9c02"``.
        problems: (module path, what is wrong and what to do).
    """

    def __init__(self, setting: str, problems: list[tuple[str, str]]) -> None:
        self.problems = problems
        listed = "".join(f"\n  - {line}" for line in grouped(problems))
        super().__init__(
            f"export at {setting}: expected a network of the profile 'finn' that maps to "
            f"dataflow hardware as a whole, got:{listed}"
        )


class BoardError(ExportError):
    """A network that needs more than the board has; ``needs`` holds what, by setting."""

    def __init__(self, message: str, needs: Mapping[Any, object]) -> None:
        self.needs = needs
        super().__init__(message)


class HardwareError(MultiQuantError):
    """A hardware layer, board or table of costs that cannot be."""


class BudgetError(MultiQuantError):
    """A budget that no bit-widths keep to, or that cannot be computed."""


class MissingPackageError(MultiQuantError):
    """An optional package that something needs and that is not installed."""


class UniformBitsWarning(UserWarning):
    """A search for mixed bit-widths ended at the same everywhere."""
