"""Units that numbers are printed in."""

from collections.abc import Iterable


def unit_of_bytes(sizes: Iterable[float]) -> tuple[float, str]:
    """What to divide sizes by that stand together, and the unit that they are in then.

    Example:
        >>> unit_of_bytes([26_000, 107_200]), unit_of_bytes([13_628_000, 900])
        ((1000.0, 'kB'), (1000000.0, 'MB'))
    """
    return (1e6, "MB") if max(sizes) >= 1e6 else (1e3, "kB")
