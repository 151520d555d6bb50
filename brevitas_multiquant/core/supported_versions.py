"""Releases of torch and Brevitas that this package is tested with, checked when it is imported.

The seams to Brevitas (injectors, proxies, export handlers) change between its minor releases, and
would otherwise fail far from their cause.
"""

import re
import warnings
from importlib import metadata
from typing import NamedTuple


class Supported(NamedTuple):
    """Releases from ``lowest`` on, tested up to those before ``untested``."""

    package: str
    lowest: str
    untested: str


SUPPORTED = (Supported("torch", "2.12", "2.16"), Supported("brevitas", "0.13.0", "0.14"))


def check_versions() -> None:
    """Refuse releases that are too old; warn of newer ones than were tested.

    Raises:
        ImportError: a release that cannot work.

    Example:
        >>> check_versions()
    """
    for supported in SUPPORTED:
        check_version(supported, metadata.version(supported.package))


def check_version(supported: Supported, installed: str) -> None:
    """Check one package.

    Args:
        supported: its tested releases.
        installed: what is installed, such as ``"2.12.1+cpu"``.

    Raises:
        ImportError: a release that cannot work.

    Example:
        >>> check_version(  # doctest: +ELLIPSIS
        ...     Supported("torch", "2.12", "2.16"), "2.11.0"
        ... )
        Traceback (most recent call last):
        ImportError: brevitas_multiquant needs torch>=2.12,<2.16, got 2.11.0; pip install ...
    """
    package, lowest, untested = supported
    wanted = f"{package}>={lowest},<{untested}"
    release = _release(installed)
    if release < _release(lowest):
        raise ImportError(
            f"brevitas_multiquant needs {wanted}, got {installed}; pip install '{wanted}'"
        )
    if release >= _release(untested):
        warnings.warn(
            f"brevitas_multiquant is tested with {wanted}, got {installed}: run its tests before "
            f"you rely on it, or pip install '{wanted}'",
            stacklevel=2,
        )


def _release(version: str) -> tuple[int, ...]:
    """The numbers of a version; what follows them (``+cpu``, ``rc1``) does not count."""
    numbers = re.match(r"\d+(\.\d+)*", version)
    assert numbers is not None, f"{version} is not a version"
    return tuple(int(part) for part in numbers[0].split("."))
