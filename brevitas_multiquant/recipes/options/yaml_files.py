"""YAML files of options, which stand below the command line."""

import argparse
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from brevitas_multiquant.errors import did_you_mean
from brevitas_multiquant.recipes.errors import MissingFileError, OptionError
from brevitas_multiquant.recipes.options.configurations import find_configuration
from brevitas_multiquant.recipes.options.types import key_value

ENVIRONMENT = "environment"
NEVER_FROM_FILE = ("config", "print_config", "resume", "overwrite", "dry_run")


def parse_over_yaml(
    parser: argparse.ArgumentParser,
    argv: Sequence[str] | None = None,
    below: Path | None = None,
    passed_over: Iterable[str] = (),
) -> argparse.Namespace:
    """Parse the command line over the YAML file that ``-c`` names, or without one over ``below``.

    Args:
        parser: has an option ``--config``.
        argv: the command line, ``sys.argv`` by default.
        below: a YAML file to read where the command line names none.
        passed_over: options of other recipes, which the file may hold as well.

    Raises:
        OptionError: keys that no recipe knows.
        MissingFileError: no such YAML file.
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    config = parser.parse_args(argv).config
    path = find_configuration(config) if config else below
    if path is None:
        return parser.parse_args(argv)
    return parser.parse_args([*yaml_arguments(parser, path, passed_over), *argv])


def yaml_arguments(
    parser: argparse.ArgumentParser, path: Path, passed_over: Iterable[str]
) -> list[str]:
    """A YAML mapping as the command line that says the same, so that types are checked alike."""
    actions = options_of(parser)
    values = {str(key).replace("-", "_"): value for key, value in read_yaml(path).items()}
    unknown = sorted(set(values) - set(actions) - set(passed_over) - {ENVIRONMENT})
    if unknown:
        raise OptionError(
            f"{path}: expected option names as keys, got unknown {unknown}: correct or remove "
            "them; {parser.prog} --help lists the options"
            f"{did_you_mean(unknown[0], [*actions, *passed_over])}"
        )
    # What a run saved of itself tells how it was started, which is no wish for the next one.
    wished = [key for key in NEVER_FROM_FILE if values.get(key) and ENVIRONMENT not in values]
    if wished:
        raise OptionError(
            f"{path}: expected options that describe a run, got {wished}, which only the command "
            "line can give: remove them"
        )
    return [
        argument
        for key, value in values.items()
        if key in actions and key not in NEVER_FROM_FILE
        for argument in _yaml_argument(path, actions[key], value)
    ]


def options_of(parser: argparse.ArgumentParser) -> dict[str, argparse.Action]:
    """Option name, with underscores, -> what argparse does with it."""
    return {action.dest: action for action in parser._actions if action.option_strings}


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file.

    Raises:
        MissingFileError: there is no such file.
        OptionError: it is not a mapping.
    """
    if not path.is_file():
        raise MissingFileError(f"expected a YAML file of options at {path}, found none")
    import yaml

    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        message = " ".join(str(error).split())
        raise OptionError(f"{path}: expected YAML, got {message}") from None
    if not isinstance(values, dict):
        raise OptionError(f"{path}: expected a mapping of option names, got {values!r}")
    return values


def _yaml_argument(path: Path, action: argparse.Action, value: Any) -> list[str]:
    """A key as on the command line; nothing for null, which leaves the option to its default."""
    flag, *opposite = (name for name in action.option_strings if name.startswith("--"))
    if value is None:
        return []
    if isinstance(value, bool) and action.nargs in (0, "?"):
        return [flag] if value else opposite
    if action.nargs == 0 or isinstance(value, bool):
        wanted = "true or false" if action.nargs == 0 else "a value"
        raise OptionError(f"{path}: {action.dest}: expected {wanted}, got {value!r}")
    if action.type is key_value:
        pairs = value.items() if isinstance(value, dict) else value
        return [flag, *(f"{name}={yaml_text(item)}" for name, item in pairs)]
    if isinstance(value, list | tuple):
        return [flag, *(str(item) for item in value)]
    return [f"{flag}={yaml_text(value)}"]


def print_config(parser: argparse.ArgumentParser, options: Mapping[str, Any]) -> NoReturn:
    """Print options as a file that ``-c`` reads, and exit.

    Args:
        parser: whose options they are; what only a command line can give is left out.
        options: name -> value.
    """
    names = [name for name in options_of(parser) if name not in NEVER_FROM_FILE]
    print(as_yaml({name: options[name] for name in names if options.get(name) is not None}), end="")
    parser.exit()


def as_yaml(options: Mapping[str, Any]) -> str:
    """Options in the order given, pairs of names and values as a mapping.

    Example:
        >>> print(as_yaml({"lr": 0.1, "model_kwargs": [("drop_rate", 0.5)]}), end="")
        lr: 0.1
        model_kwargs:
          drop_rate: 0.5
    """
    import yaml

    return yaml.safe_dump({k: _plain(v) for k, v in options.items()}, sort_keys=False)


def _plain(value: Any) -> Any:
    are_pairs = isinstance(value, list) and value and all(isinstance(v, tuple) for v in value)
    return dict(value) if are_pairs else value


def yaml_text(value: Any) -> str:
    """A value on one line, so that reading it as YAML gives it back; a string stays itself."""
    import yaml

    if isinstance(value, str):
        return value
    return yaml.safe_dump(value, default_flow_style=True).removesuffix("...\n").strip()
