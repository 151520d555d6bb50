"""The page of all options, written from the parsers of the command line."""

import argparse
from collections.abc import Iterable, Mapping

TITLE = "# Options\n\nOf every [command](command_line.md), as `--help` prints them."
HEAD = "| option | what |\n|---|---|"


def options_page(parsers: Mapping[str, argparse.ArgumentParser]) -> str:
    """Markdown: a section for each command, a table for each of its groups."""
    return "\n\n".join([TITLE, *(_section(name, parser) for name, parser in parsers.items())])


def _section(name: str, parser: argparse.ArgumentParser) -> str:
    parts = [f"## {name}", parser.description or ""]
    for group in parser._action_groups:
        rows = [_row(parser, action) for action in _shown(group._group_actions)]
        if rows:
            parts += [f"**{group.title}**", "\n".join([HEAD, *rows])]
    return "\n\n".join(parts)


def _shown(actions: Iterable[argparse.Action]) -> list[argparse.Action]:
    hidden = argparse.SUPPRESS
    return [one for one in actions if one.help != hidden and one.dest != "help"]


def _row(parser: argparse.ArgumentParser, action: argparse.Action) -> str:
    """Every spelling with what it takes; the help with its default filled in, and the choices."""
    formatter = parser._get_formatter()
    choices = _choices(action)
    takes = "" if action.nargs == 0 else formatter._format_args(action, action.dest.upper())
    if choices:
        takes = action.dest.rpartition("_")[2].upper() + " ..." * (action.nargs == "+")
    spellings = [f"`{f'{option} {takes}'.strip()}`" for option in action.option_strings or [""]]
    told = " ".join(formatter._expand_help(action).split()) if action.help else ""
    told += "<br>" * bool(choices) + ", ".join(f"`{choice}`" for choice in choices)
    return f"| {_cell('<br>'.join(spellings))} | {_cell(told)} |"


def _choices(action: argparse.Action) -> list[str]:
    """The values that an option has, where it names them: `{one,other}` in a usage line."""
    if action.choices is not None:
        return [str(choice) for choice in action.choices]
    metavar = str(action.metavar or "")
    return metavar[1:-1].split(",") if metavar.startswith("{") else []


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
