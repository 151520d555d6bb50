"""An option is a field of a frozen dataclass: name, type, default and help stand in one place."""

import argparse
from collections.abc import Container
from dataclasses import MISSING, field, fields
from typing import Any, TypeVar

from brevitas_multiquant.errors import did_you_mean

Options = TypeVar("Options")

PROGRAM = "brevitas-multiquant"
"""What is typed, and what usage messages say."""

PACKED = "packed network: best.safetensors of a run, or zoo:NAME"


class Help(argparse.HelpFormatter):
    """Says each option's default, where its help text does not say what is done without it.

    Options are in the lists below and not in the line of usage, which stands before every error.
    """

    def _format_usage(self, usage: Any, actions: Any, groups: Any, prefix: Any) -> str:
        by_place = [action for action in actions if not action.option_strings]
        program, self._prog = self._prog, f"{self._prog} [options]"
        text = super()._format_usage(usage, by_place, [], prefix)
        self._prog = program
        return text

    def _get_help_string(self, action: argparse.Action) -> str:
        text, default = action.help or "", action.default
        unsaid = default is None or default is False or default in ([], argparse.SUPPRESS)
        if unsaid or "default" in text:
            return text
        shown = str(default)
        if isinstance(default, list):
            items = ("=".join(map(str, i)) if isinstance(i, tuple) else str(i) for i in default)
            shown = " ".join(items)
        return f"{text} (default: {shown})"


class Parser(argparse.ArgumentParser):
    """A parser that takes whole names of options, and says what an unknown word comes near to.

    Args:
        command: the word after `PROGRAM`; none for the program itself.
        **given: as `argparse.ArgumentParser` has it.
    """

    def __init__(self, command: str = "", **given: Any) -> None:
        given = {"prog": f"{PROGRAM} {command}".strip(), "formatter_class": Help, **given}
        super().__init__(allow_abbrev=False, **given)

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse does, which says nothing of names that come near.

        Example:
            >>> parser = Parser("train")
            >>> _ = parser.add_argument("--epochs")
            >>> parser.parse_args(["--epochs", "3"])
            Namespace(epochs='3')
        """
        parsed, unknown = self.parse_known_args(args, namespace)
        if unknown:
            options = [one.partition("=")[0] for one in unknown if one.startswith("--")]
            known = [name for action in self._actions for name in action.option_strings]
            hint = did_you_mean(options[0], known) if options else ""
            self.error(f"unrecognized arguments: {' '.join(unknown)}{hint}")
        return parsed

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        try:
            super()._check_value(action, value)
        except argparse.ArgumentError as error:
            error.message += did_you_mean(value, map(str, action.choices or ()))
            raise


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


def argument(metavar: str, help: str, **more: Any) -> Any:
    """A field that is given by its place on the command line.

    Args:
        metavar: what usage messages call it.
        help: what ``--help`` says.
        more: as ``argparse.ArgumentParser.add_argument`` has it.
    """
    return field(metadata={_GIVEN: {"metavar": metavar, "help": help, **more}})


def add_options(parser: Any, options: type, leave_out: Container[str] = ()) -> None:
    """Add the fields of a dataclass to a parser, or to a group of it.

    Args:
        parser: the parser, or the group.
        options: the dataclass.
        leave_out: names of those that the command decides itself.

    Example:
        >>> from dataclasses import dataclass
        >>> @dataclass(frozen=True)
        ... class Loud:
        ...     sound: str = argument("FILE", "to play")
        ...     volume: float = option(0.5, float, "of the sound")
        >>> parser = argparse.ArgumentParser()
        >>> add_options(parser, Loud)
        >>> taken(Loud, parser.parse_args(["bell.wav", "--volume", "1"]))
        Loud(sound='bell.wav', volume=1.0)
    """
    for one in fields(options):  # type: ignore[arg-type]
        if _GIVEN not in one.metadata or one.name in leave_out:  # it is a concern, not an option
            continue
        given = dict(one.metadata[_GIVEN])
        if "default" not in given:
            parser.add_argument(one.name, **given)
            continue
        short = given.pop("short")
        parser.add_argument(*filter(None, [short]), f"--{one.name.replace('_', '-')}", **given)


def add_group(parser: argparse.ArgumentParser, title: str, *concerns: type) -> None:
    """Options of some concerns under one title of ``--help``."""
    group = parser.add_argument_group(title)
    for concern in concerns:
        add_options(group, concern)


def taken(options: type[Options], parsed: argparse.Namespace) -> Options:
    """The options of one concern out of all that were parsed."""
    names = [one.name for one in fields(options)]  # type: ignore[arg-type]
    return options(**{name: getattr(parsed, name) for name in names})
