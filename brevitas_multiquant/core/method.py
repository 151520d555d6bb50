"""What a method of run-time bit-widths is: a row of data, which other floors give its parts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import ClassVar, Protocol

from brevitas_multiquant.core.named import row_named
from brevitas_multiquant.core.selection import (
    BRANCH_BITS,
    DEFAULT_SELECTION,
    MIN_BITS,
    Selection,
    check_bits,
    resolve_selection,
)
from brevitas_multiquant.errors import BitWidthError, SelectionError

Key = tuple[str, ...]
"""What of a setting chooses one of several modules: ``("bits",)``; ``()`` if there is but one."""


NORMS: dict[str, Key] = {
    "transitional": ("own", "next"),
    "own": ("own",),
    "bits": ("bits",),
}
"""What chooses a norm where layers have bits of their own: those of the layer in front of it and of
the one behind, of the layer in front alone, or the network's bit-width."""


class Topology(Protocol):
    """How many bodies a network has, and which of them run at a bit-width.

    Attributes:
        merges: whether outputs of several bodies are added.
    """

    merges: ClassVar[bool]

    def resolve(
        self, selection: str | Mapping[int, Sequence[int]], bits: Sequence[int]
    ) -> Selection:
        """What a user writes, as a checked selection."""


@dataclass(frozen=True)
class Branches:
    """A branch for every two bits, of which each bit-width runs as many as it has bits for."""

    merges: ClassVar[bool] = True

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

    merges: ClassVar[bool] = False

    def resolve(
        self, selection: str | Mapping[int, Sequence[int]], bits: Sequence[int]
    ) -> Selection:
        """The one body at every bit-width.

        Raises:
            SelectionError: another strategy than the default, or a mapping to anything else.
        """
        only: Selection = dict.fromkeys(sorted(bits), (0,))
        if selection not in (DEFAULT_SELECTION, only):
            raise SelectionError(
                f"selection: expected none, as this method has one body, got {selection!r}"
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
        weight_bits: bits of the weights whatever runs; None: they follow the run-time bit-width.
        options: the fields of `core.config.MultiQuantConfig` that it has and not every method,
            each with what it may be, the default first; none: what the field says itself.
        least_bits: the smallest bit-width that it has.
        most_candidates: how many bit-widths one network may have; None: any number.
        tied: whether the weights that read a site always have as many bits as its activations.
    """

    name: str
    topology: Topology
    weights: str
    activations: Key
    norms: Key
    objective: str
    paper: str
    weight_bits: int | None = BRANCH_BITS
    options: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: MappingProxyType({}))
    least_bits: int = MIN_BITS
    most_candidates: int | None = None
    tied: bool = False

    def check_bits(self, bits: Sequence[int]) -> tuple[int, ...]:
        """Candidate bit-widths, checked for this method and in ascending order.

        Raises:
            BitWidthError: as of `core.selection.check_bits`, or more than the method can have.

        Example:
            >>> METHODS["adabits"].check_bits([4, 2])
            (2, 4)
        """
        checked = check_bits(bits, self.least_bits)
        if self.most_candidates is not None and len(checked) > self.most_candidates:
            raise BitWidthError(
                f"bits: expected one bit-width, as the method {self.name!r} trains a network of "
                f"its own for each, got {list(checked)}: call multiquantize once for each of "
                "them, or take a method of run-time bit-widths"
            )
        return checked


# AdaBits' SAT multiplies the quantized weights of the classifier by a number; here the classifier
# stays float, in every method.
_ROWS = (
    Method(
        "multiquant",
        Branches(),
        weights="fixed",
        activations=("bits",),
        norms=("bits",),
        objective="in-place distillation",
        paper="MultiQuant: training once for multi-bit quantization of neural networks",
        options={"merge": (), "half_width": (), "weights": ()},
    ),
    Method(
        "individual",
        Single(),
        weights="own",
        activations=("bits",),
        norms=("bits",),
        objective="labels",
        paper="none: quantization-aware training of one network, with MultiQuant's quantizers",
        weight_bits=None,
        options={"assignment": (), "grid": ("original", "symmetric", "integer")},
        least_bits=1,
        most_candidates=1,
    ),
    Method(
        "adabits",
        Single(),
        weights="run-time",
        activations=("bits",),
        norms=("bits",),
        objective="labels",
        paper="AdaBits: neural network quantization with adaptive bit-widths (1912.09666)",
        weight_bits=None,
        options={
            "grid": ("centered", "modified", "original"),
            "weight_range": ("learned", "tanh"),
        },
    ),
    Method(
        "any_precision",
        Single(),
        weights="run-time",
        activations=("bits",),
        norms=("bits",),
        objective="recursive distillation",
        paper="Any-Precision deep neural networks (1911.07346)",
        weight_bits=None,
        options={
            "grid": ("original",),
            "weight_range": ("tanh_times_mean", "learned"),
            "activation_range": ("unit", "learned"),
            "shortcuts": ("float", "quantized"),
        },
        least_bits=1,
    ),
    Method(
        "double_rounding",
        Single(),
        weights="run-time",
        activations=("bits",),
        norms=("bits",),
        objective="stepwise distillation",
        paper="Nearly lossless adaptive bit switching (2502.01199)",
        weight_bits=None,
        options={
            "grid": ("double",),
            "weight_range": ("step",),
            "activation_range": ("step", "learned"),
        },
    ),
    Method(
        "vertical_layering",
        Single(),
        weights="run-time",
        activations=("bits",),
        norms=("bits",),
        objective="labels",
        paper="Vertical layering of quantized neural networks (2212.05326)",
        weight_bits=None,
        options={
            "grid": ("cascade",),
            "weight_range": ("step",),
            "activation_range": ("step", "learned"),
        },
    ),
    Method(
        "bit_mixer",
        Single(),
        weights="run-time",
        activations=("own",),
        norms=NORMS["transitional"],
        objective="random assignments",
        paper="Bit-Mixer: mixed-precision networks with runtime bit-width selection (2103.17267)",
        weight_bits=None,
        options={"grid": ("centered",), "norms": tuple(NORMS)},
        tied=True,
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
    return row_named("method", name, METHODS)
