"""Costs as sums of terms, each of a few bit-widths: what allocators count with.

Bit operations and bytes have a term a layer; LUTs have one for each product, of the bits of its
weights and activations, and one for each table of thresholds.
"""

from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

Width = Hashable
"""Whatever names a bit-width that can be chosen: (site, ``"weight"``), a channel, a group."""


@dataclass(frozen=True)
class Term:
    """A part of a cost.

    Args:
        widths: the bit-widths that it depends on.
        of: their bits, in order -> the cost, a number or a tuple of one number a resource.
        layer: whose cost it is, for tables.

    Example:
        >>> term = Term(("weights", "input"), lambda weights, read: 100 * weights * read)
        >>> term({"weights": 2, "input": 4})
        800
    """

    widths: tuple[Width, ...]
    of: Callable[..., Any]
    layer: str = ""

    def __call__(self, bits: Mapping[Any, Any]) -> Any:
        """The cost at the bits of all widths."""
        return self.of(*(bits[width] for width in self.widths))


def total_of(terms: Iterable[Term], bits: Mapping[Any, Any]) -> tuple[Any, ...]:
    """All terms together, a number for each resource.

    Example:
        >>> total_of([Term(("a",), lambda a: 2 * a), Term(("b",), lambda b: b)], {"a": 3, "b": 1})
        (7,)
    """
    parts = [as_resources(term(bits)) for term in terms]
    return tuple(map(sum, zip(*parts, strict=True)))


def as_resources(cost: Any) -> tuple[Any, ...]:
    """A cost as a tuple of resources, of one if it is a number.

    Example:
        >>> as_resources(3.0), as_resources((300, 12))
        ((3.0,), (300, 12))
    """
    return cost if isinstance(cost, tuple) else (cost,)
