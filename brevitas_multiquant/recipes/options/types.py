"""What option values may be; argparse turns a breach into a usage error."""

import argparse
import math
import re
from typing import Any

from brevitas_multiquant.core.precision import Assignment
from brevitas_multiquant.errors import BitWidthError


def key_value(text: str) -> tuple[str, Any]:
    """``name=value`` with the value read as YAML: ``drop_rate=0.1`` is ``("drop_rate", 0.1)``."""
    name, separator, value = text.partition("=")
    if not name or not separator:
        raise argparse.ArgumentTypeError(f"expected NAME=VALUE, got {text!r}")
    return name, read_value(value)


def selection(text: str) -> str | dict[int, list[int]]:
    """A strategy's name, or a mapping written as YAML: ``{2: [0], 4: [0, 1]}``."""
    value = read_value(text)
    if not isinstance(value, str | dict):
        raise argparse.ArgumentTypeError(f"expected a name or a mapping, got {text!r}")
    return value


def assignment(text: str) -> dict[str, Any]:
    """What an assignment has in a file; the file's name, or the same written as YAML."""
    value = read_value(text)
    try:
        read = Assignment.from_dict(value) if isinstance(value, dict) else Assignment.load(text)
    except BitWidthError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return read.to_dict()


_AUTO_AUGMENT = re.compile(
    r"rand(-((m|n|mmax|inc)\d+|(p|mstd)[\d.]+|t(weights|3aw?)))*"
    r"|augmix(-([mwdb]\d+|(a|mstd)[\d.]+))*"
    r"|(v0r?|originalr?|3a)(-mstd[\d.]+)?"
)


def auto_augment(text: str) -> str:
    """A policy as timm writes it, where timm would pass over a section that it does not know.

    Example:
        >>> auto_augment("rand-m9-mstd0.5-inc1")
        'rand-m9-mstd0.5-inc1'
    """
    if not _AUTO_AUGMENT.fullmatch(text):
        raise argparse.ArgumentTypeError(
            "expected a policy of timm, as rand-m9-mstd0.5-inc1, augmix-m5-w4-d2, v0, original "
            f"or 3a, got {text!r}"
        )
    return text


def read_value(text: str) -> Any:
    """A YAML value."""
    import yaml

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        raise argparse.ArgumentTypeError(f"expected a YAML value, got {text!r}") from None


def positive(text: str) -> int:
    """An integer of at least 1."""
    return _at_least(1, text)


def not_negative(text: str) -> int:
    """An integer of at least 0."""
    return _at_least(0, text)


def positive_number(text: str) -> float:
    """A finite number above 0."""
    if not (value := number(text)) > 0:
        raise argparse.ArgumentTypeError(f"expected a number above 0, got {text}")
    return value


def number_from_zero(text: str) -> float:
    """A finite number of at least 0."""
    if not (value := number(text)) >= 0:
        raise argparse.ArgumentTypeError(f"expected a number of at least 0, got {text}")
    return value


def fraction(text: str) -> float:
    """A number in [0, 1]."""
    if not 0 <= (value := number(text)) <= 1:
        raise argparse.ArgumentTypeError(f"expected a number in [0, 1], got {text}")
    return value


def number(text: str) -> float:
    """A finite number."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"expected a finite number, got {text!r}")
    return value


def _at_least(least: int, text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        value = least - 1
    if value < least:
        raise argparse.ArgumentTypeError(f"expected an integer of at least {least}, got {text!r}")
    return value
