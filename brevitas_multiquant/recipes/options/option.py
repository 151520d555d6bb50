"""An option is a field of a frozen dataclass: name, type, default and help stand in one place."""

import argparse
from dataclasses import MISSING, field, fields
from typing import Any, TypeVar

from brevitas_multiquant.errors import did_you_mean

Options = TypeVar("Options")


class Parser(argparse.ArgumentParser):
    """A parser that takes whole names of options, and says which ones an unknown one is near."""

    def __init__(self, **given: Any) -> None:
        super().__init__(allow_abbrev=False, **given)

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse does, which says nothing of names that come near.

        Example:
            >>> parser = Parser(prog="train")
            >>> _ = parser.add_argument("--epochs")
            >>> parser.parse_args(["--epochs", "3"])
            Namespace(epochs='3')
        """
        parsed, unknown = self.parse_known_args(args, namespace)
        if unknown:
            options = [one.partition("=")[0] for one in unknown if one.startswith("--")]
            hint = did_you_mean(options[0], names_of(self, parsed)) if options else ""
            self.error(f"unrecognized arguments: {' '.join(unknown)}{hint}")
        return parsed


def names_of(parser: argparse.ArgumentParser, parsed: argparse.Namespace) -> list[str]:
    """Names of the options of a parser, and of the command that was chosen."""
    names: list[str] = []
    for action in parser._actions:
        names += action.option_strings
        if isinstance(action, argparse._SubParsersAction):
            names += names_of(action.choices[getattr(parsed, action.dest)], parsed)
    return names


SWITCH = argparse.BooleanOptionalAction
_GIVEN = "argparse"


def option(
    default: Any = None, type: Any = None, help: str = "", short: str = "", **more: Any
) -> Any:
    """A field that is an option of the command line, ``--name-of-the-field``.

    Args:
        default: where nobody gives it; False makes a flag of it.
        type: text to value; see `brevitas_multiquant.recipes.options.types`.
        help: what ``--help`` says.
        short: another spelling, as ``-b``.
        more: as ``argparse.ArgumentParser.add_argument`` has it.
    """
    if default is False and "action" not in more:
        more["action"] = "store_true"
    if type is not None:
        more["type"] = type
    if help:
        more["help"] = help
    given = {"short": short, "default": default, **more}
    many = isinstance(default, list)
    return field(
        default=MISSING if many else default,
        default_factory=default.copy if many else MISSING,
        metadata={_GIVEN: given},
    )


def add_options(parser: Any, options: type) -> None:
    """Add the fields of a dataclass to a parser, or to a group of it.

    Example:
        >>> from dataclasses import dataclass
        >>> @dataclass(frozen=True)
        ... class Loud:
        ...     volume: float = option(0.5, float, "of the sound")
        >>> parser = argparse.ArgumentParser()
        >>> add_options(parser, Loud)
        >>> taken(Loud, parser.parse_args(["--volume", "1"]))
        Loud(volume=1.0)
    """
    for one in fields(options):  # type: ignore[arg-type]
        if _GIVEN not in one.metadata:  # a positional argument
            continue
        given = dict(one.metadata[_GIVEN])
        short = given.pop("short")
        parser.add_argument(*filter(None, [short]), f"--{one.name.replace('_', '-')}", **given)


def taken(options: type[Options], parsed: argparse.Namespace) -> Options:
    """The options of one concern out of all that were parsed."""
    names = [one.name for one in fields(options)]  # type: ignore[arg-type]
    return options(**{name: getattr(parsed, name) for name in names})
