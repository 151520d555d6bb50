"""Plain values in JSON and YAML files, for what people may also write by hand."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from brevitas_multiquant.errors import BitWidthError

JSON, YAML = (".json",), (".yaml", ".yml")
"""Ends of file names."""


def write_values(path: str | os.PathLike[str], values: Any) -> None:
    """Write plain values in the format that the file's name says.

    Raises:
        BitWidthError: a name of another format, PyYAML missing, or a file that cannot be written.
    """
    dump: Callable[[Any], str]
    if _ends(path) in YAML:
        yaml = _yaml()
        dump = lambda data: yaml.safe_dump(data, sort_keys=False)  # noqa: E731
    else:
        dump = lambda data: json.dumps(data, indent=2) + "\n"  # noqa: E731
    try:
        Path(path).write_text(dump(values), encoding="utf-8")
    except OSError as error:
        raise BitWidthError(
            f"{os.fspath(path)}: expected a file that can be written, got {error}"
        ) from error


def read_values(path: str | os.PathLike[str]) -> Any:
    """The plain values in a file, in the format that its name says.

    Raises:
        BitWidthError: a name of another format, PyYAML missing, no such file, or no such format.
    """
    load: Callable[[str], Any] = _yaml().safe_load if _ends(path) in YAML else json.loads
    try:
        return load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise BitWidthError(f"expected a file that can be read, got {error}") from error
    except Exception as error:  # JSON and YAML have errors of their own, of no common base
        raise BitWidthError(f"expected {_ends(path)[1:].upper()}, got {error}") from error


def _ends(path: str | os.PathLike[str]) -> str:
    end = Path(path).suffix.lower()
    if end not in (*JSON, *YAML):
        raise BitWidthError(
            f"assignment: expected a file called {', '.join((*JSON, *YAML))}, got "
            f"{os.fspath(path)!r}"
        )
    return end


def _yaml() -> Any:
    try:
        import yaml
    except ImportError as error:
        raise BitWidthError(
            f"assignment: expected the package pyyaml, which cannot be imported ({error}); "
            "pip install pyyaml, or use a file called .json"
        ) from error
    return yaml
