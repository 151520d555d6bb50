"""The fields of `MultiQuantConfig` as options of a command line."""

from typing import Any

from brevitas_multiquant.core.config import OPTIONS, MultiQuantConfig, choices_of
from brevitas_multiquant.core.selection import STRATEGIES

_SHAPES: dict[str, dict[str, Any]] = {
    "bits": {"type": int, "nargs": "+", "metavar": "B"},
    "selection": {"choices": list(STRATEGIES)},
}
"""What argparse needs to know beside a default, a help text and choices."""


def argument_of(name: str) -> dict[str, Any]:
    """How `argparse.ArgumentParser.add_argument` has an option of `MultiQuantConfig`.

    Example:
        >>> argument_of("merge")["choices"], argument_of("bits")["default"]
        (['mean', 'sum'], [2, 4, 6, 8])
    """
    (one,) = (one for one in OPTIONS if one.name == name)
    choices = list(choices_of(name))
    default = list(one.default) if isinstance(one.default, tuple) else one.default
    shape = {"choices": choices} if choices else _SHAPES[name]
    return {"default": default, "help": one.metadata["help"], **shape}


def config_from(options: Any) -> MultiQuantConfig:
    """The configuration in an object of options; what it has not is as by default.

    Raises:
        BitWidthError, SelectionError, ConfigError: an option outside its range.
    """
    names = [one.name for one in OPTIONS if hasattr(options, one.name)]
    return MultiQuantConfig(**{name: getattr(options, name) for name in names})
