"""The words after ``brevitas-multiquant``: each has a parser with help, and a ``main``."""

import ast
import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

from brevitas_multiquant import cli
from brevitas_multiquant.cli.commands import COMMANDS, program_parser

PARSERS = cli.parsers()


def options_of(name):
    return [one for one in PARSERS[name]._actions if one.dest not in ("help", "version")]


def test_every_command_has_its_parser():
    assert list(PARSERS) == list(COMMANDS)
    for name, parser in PARSERS.items():
        assert parser.prog == f"brevitas-multiquant {name}"
        assert parser.description


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_has_help_and_shows_its_default(name):
    shown = " ".join(PARSERS[name].format_help().split())
    for option in options_of(name):
        assert option.help, f"--{option.dest} of {name}"
        assert isinstance(option.default, bool | list | None) or str(option.default) in shown


@pytest.mark.parametrize("name", COMMANDS)
def test_the_line_of_usage_is_short(name):
    """It stands before every error."""
    assert PARSERS[name].format_usage().count("\n") == 1


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_a_main(name):
    """By reading: what a command needs is imported when it runs."""
    file = Path(importlib.util.find_spec(COMMANDS[name].module).origin)
    defined = [node.name for node in ast.parse(file.read_text()).body if hasattr(node, "name")]
    assert "main" in defined and '__name__ == "__main__"' in file.read_text()


def test_an_option_is_the_same_in_every_command():
    """Type and choices of a name, wherever it is."""
    differ = {"bits", "assignment", "board", "profile", "output", "target_fps", "clock_ns"}
    differ |= {"strategy"}  # of a search those that train
    seen = {}
    for name in PARSERS:
        for option in options_of(name):
            told = (option.option_strings, option.choices)
            if option.option_strings and option.dest not in differ:
                assert seen.setdefault(option.dest, told) == told, f"--{option.dest} of {name}"


def test_help_lists_the_commands():
    shown = program_parser().format_help()
    for name, command in COMMANDS.items():
        assert re.search(rf"^ +{name} +{re.escape(command.help)}$", shown, re.M)


def test_a_recipe_as_a_module():
    command = [sys.executable, "-m", "brevitas_multiquant.recipes.train", "--help"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert shown.startswith("usage: brevitas-multiquant ")


def test_a_package_that_is_missing_is_named(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "brevitas_multiquant.recipes.plot", None)
    assert cli.main(["plot", "run"]) == 1
    assert 'pip install "brevitas-multiquant[recipes]"' in capsys.readouterr().err
