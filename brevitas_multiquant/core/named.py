"""A row of a table by the name that a user gives it."""

from collections.abc import Mapping
from difflib import get_close_matches
from typing import TypeVar

from brevitas_multiquant.errors import ConfigError

Row = TypeVar("Row")


def row_named(what: str, name: object, rows: Mapping[str, Row]) -> Row:
    """The row of a name.

    Args:
        what: starts the error.
        name: given by a user.
        rows: name -> row.

    Raises:
        ConfigError: there is none; names the nearest.

    Example:
        >>> row_named("method", "first", {"first": 1, "second": 2})
        1
    """
    if isinstance(name, str) and name in rows:
        return rows[name]
    near = get_close_matches(str(name), rows, 1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise ConfigError(f"{what}: expected one of {list(rows)}, got {name!r}{hint}")
