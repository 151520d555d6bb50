"""Packages that only some functions need."""

from importlib import import_module
from typing import Any

from brevitas_multiquant.errors import MissingPackageError


def optional_package(module: str, caller: str, extra: str) -> Any:
    """A module of a package that may not be installed.

    Args:
        module: its name.
        caller: what needs it, for the error.
        extra: with which extra of this package it is installed.

    Raises:
        MissingPackageError: it cannot be imported; says how to install it.

    Example:
        >>> optional_package("json", "a reader", "recipes").loads("[1]")
        [1]
    """
    try:
        return import_module(module)
    except ImportError as error:
        raise MissingPackageError(missing(caller, module.partition(".")[0], extra)) from error


def missing(caller: str, package: str, extra: str) -> str:
    """What is missing and how to install it."""
    return (
        f"{caller}: expected the package {package}, which cannot be imported: "
        f'pip install "brevitas-multiquant[{extra}]"'
    )
