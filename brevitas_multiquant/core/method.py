"""What a method of run-time bit-widths is: a row of data, which other floors give its parts."""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from brevitas_multiquant.core.selection import Selection, resolve_selection
from brevitas_multiquant.errors import ConfigError, SelectionError

Key = tuple[str, ...]
"""What of a setting chooses one of several modules: ``("bits",)``; ``()`` if there is but one."""


class Topology(Protocol):
    """How many bodies a network has, and which of them run at a bit-width."""

    def resolve(
        self, selection: str | Mapping[int, Sequence[int]], bits: Sequence[int]
    ) -> Selection:
        """What a user writes, as a checked selection."""


@dataclass(frozen=True)
class Branches:
    """A branch for every two bits, of which each bit-width runs as many as it has bits for."""

    def resolve(
        self, selection: str | Mapping[int, Sequence[int]], bits: Sequence[int]
    ) -> Selection:
        """`resolve_selection`."""
        return resolve_selection(selection, bits)


@dataclass(frozen=True)
class Single:
    """One body that runs whole at every bit-width: a network of one branch.

    Example:
        >>> Single().resolve("amortized", [2, 4])
        {2: (0,), 4: (0,)}
    """

    def resolve(
        self, selection: str | Mapping[int, Sequence[int]], bits: Sequence[int]
    ) -> Selection:
        """The one body at every bit-width, for the name of any strategy.

        Raises:
            SelectionError: a mapping to anything else.
        """
        only: Selection = dict.fromkeys(sorted(bits), (0,))
        if not isinstance(selection, str) and selection != only:
            raise SelectionError(
                f"selection: expected {only}, as this method has one body, got {selection!r}"
            )
        return only


@dataclass(frozen=True)
class Method:
    """A row of `METHODS`.

    Args:
        name: what users call it.
        topology: its bodies.
        weights: the family of codes that weights have, a name that `methods.catalogue` knows.
        activations: what chooses the range of an activation quantizer.
        norms: what chooses a norm.
        objective: what a training step minimises, a name that `methods.catalogue` knows.
        paper: where it is from.
    """

    name: str
    topology: Topology
    weights: str
    activations: Key
    norms: Key
    objective: str
    paper: str


_ROWS = (
    Method(
        "multiquant",
        Branches(),
        weights="fixed",
        activations=("bits",),
        norms=("bits",),
        objective="in-place distillation",
        paper="MultiQuant: training once for multi-bit quantization of neural networks",
    ),
)
METHODS = {row.name: row for row in _ROWS}
"""Name -> method."""


def method_named(name: object) -> Method:
    """The method of a name.

    Raises:
        ConfigError: there is none; names the nearest.

    Example:
        >>> method_named("multiquant").norms
        ('bits',)
    """
    if isinstance(name, str) and name in METHODS:
        return METHODS[name]
    near = difflib.get_close_matches(str(name), METHODS, 1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise ConfigError(f"method: expected one of {list(METHODS)}, got {name!r}{hint}")
