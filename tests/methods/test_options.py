"""Options of `MultiQuantConfig` on a command line."""

import argparse
import inspect

import pytest

from brevitas_multiquant import multiquantize
from brevitas_multiquant.core.config import NOT_GIVEN, OPTIONS, MultiQuantConfig
from brevitas_multiquant.methods.options import argument_of, config_from
from brevitas_multiquant.recipes.options.model import NetworkOptions
from brevitas_multiquant.recipes.options.option import add_options

NAMES = {one.name for one in OPTIONS}


def parse(*arguments, leave_out=()):
    parser = argparse.ArgumentParser()
    add_options(parser, NetworkOptions, leave_out)
    return parser.parse_args(arguments)


def test_nothing_asked_for_is_the_default():
    assert config_from(parse()) == MultiQuantConfig()
    assert config_from(object()) == MultiQuantConfig()


def test_each_option():
    given = parse(
        *("--bits", "4", "3", "--selection", "serial", "--profile", "finn", "--merge", "sum"),
        *("--half-width", "channels", "--weights", "ternary", "--method", "multiquant"),
    )
    assert set(vars(given)) == NAMES
    options = {"profile": "finn", "merge": "sum", "half_width": "channels", "weights": "ternary"}
    assert config_from(given) == MultiQuantConfig.create([3, 4], "serial", **options)


@pytest.mark.parametrize("name", sorted(NAMES - {"bits", "selection"}))
def test_other_values_are_usage_errors(name, capsys):
    with pytest.raises(SystemExit, match="2"):
        parse(f"--{name.replace('_', '-')}", "best")
    assert "invalid choice: 'best'" in capsys.readouterr().err


def test_a_command_leaves_out():
    given = parse("--merge", "sum", leave_out=("profile",))
    assert set(vars(given)) == NAMES - {"profile"}
    assert all(argument_of(name)["help"] for name in NAMES)


def test_multiquantize_has_every_option_as_a_keyword():
    """What nobody asks for is in the configuration, or as by default; None is an error."""
    parameters = inspect.signature(multiquantize).parameters
    assert set(parameters) >= NAMES
    assert all(parameters[name].default is NOT_GIVEN for name in NAMES)
