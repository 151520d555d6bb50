"""Which integers weights are: a row of a table, never a branch of code.

A quantizer places each weight w within its range (l, u), ``p = clip((w - l) / (u - l), 0, 1)``, and
takes one of ``levels + 1`` places in order:

- by rounding, ``q = round(levels * p)``: the nearest of evenly spaced values, ties to even;
- by ``floor``, ``q = min(floor((levels + 1) * p), levels)``: one of equal bins. Such grids nest:
  fewer bits are the first bits of more, ``q_b = q_B >> (B - b)``, so the integers of the largest
  bit-width are all that has to be stored.

A grid says which integer each place stands for, ``integer = step * q + offset``, and by which
divisor the layer's output scale turns integers into real weights, which lie between -1 and 1.

Families are functions of the bit-width. The paper's equation 3 is ``odd`` for any of them.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, NamedTuple

from brevitas_multiquant.core.selection import MAX_BITS, is_whole
from brevitas_multiquant.errors import BitWidthError


class Numbers(NamedTuple):
    """What differs between the grids of one family: Python numbers, or a tensor for each.

    ``levels`` is the largest place q, ``offset`` the integer at place 0, ``shift`` what integers
    are divided by before they are rounded again, if they are, ``highest`` the largest integer, and
    ``integer_bits`` the bits of the signed integers in hardware.
    """

    levels: Any
    offset: Any
    shift: Any
    highest: Any
    integer_bits: Any


@dataclass(frozen=True)
class Grid:
    """A set of evenly spaced integers that a weight can be.

    The range that a quantizer starts with spans the integers evenly with the weight 0 where the
    integer 0 is: from ``-sigmas`` standard deviations of the weights where the real weight is -1.
    For ``int2`` that is l = -2 and u = +1 standard deviations, two steps below 0 and one above;
    for the symmetric grids l = -u.

    Args:
        name: what users call it.
        levels: largest place q, one less than there are integers.
        offset: the smallest integer.
        step: from one integer to the next.
        rounding: ``"round"`` (half to even) or ``"floor"``.
        sigmas: standard deviations of the weights that the real weight 1 starts at.
        finer: the grid whose integers are divided by ``shift`` and rounded again.
        shift: a power of two.
        halves: whether that is done bit by bit, each halving rounded.

    Example:
        >>> int2 = WEIGHT_FORMATS["int2"]
        >>> int2.levels, int2.step, int2.offset, int2.divisor, int2.integer_bits
        (3, 1, -2, 2, 2)
        >>> print(int2)
        int2 (-2, -1, 0, 1)
    """

    name: str
    levels: int
    offset: int
    step: int = 1
    rounding: Literal["round", "floor"] = "round"
    sigmas: float = 3.0
    finer: "Grid | None" = None
    shift: int = 1
    halves: bool = False

    @property
    def highest(self) -> int:
        """The largest integer."""
        return self.offset + self.step * self.levels

    @property
    def place_bits(self) -> int:
        """Bits that tell one integer from the others: what a weight takes in a file."""
        return self.levels.bit_length()

    @property
    def integers(self) -> tuple[int, ...]:
        """All of them, ascending."""
        return tuple(range(self.offset, self.highest + 1, self.step))

    @property
    def magnitude(self) -> int:
        """The largest magnitude of an integer."""
        return max(-self.offset, self.highest)

    @property
    def divisor(self) -> int | float:
        """Integers divided by it are real weights between -1 and 1.

        Bins fill that range, and an odd integer stands for the middle of its bin.
        """
        if self.finer is not None:
            return self.finer.divisor / self.shift
        return self.magnitude if self.rounding == "round" else self.step * (self.levels + 1) // 2

    @property
    def span(self) -> tuple[float, float]:
        """The real weights at the two ends of the range."""
        if self.finer is not None:
            return self.finer.span
        if self.rounding == "floor":
            return -1.0, 1.0
        return self.offset / self.divisor, self.highest / self.divisor

    @property
    def numbers(self) -> Numbers:
        """What sets it apart from the other grids of its family."""
        return Numbers(self.levels, self.offset, self.shift, self.highest, self.integer_bits)

    @property
    def integer_bits(self) -> int:
        """Bits of the signed integers in hardware; a place may take fewer."""
        return signed_bits(self.offset, self.highest)

    @property
    def datatype(self) -> str:
        """The smallest type of qonnx that holds the integers."""
        return weight_datatype(self.offset, self.highest)

    @property
    def negated_datatype(self) -> str:
        """The smallest type of qonnx for these integers and the negated ones in one tensor."""
        return weight_datatype(-self.magnitude, self.magnitude)

    @property
    def is_narrow(self) -> bool:
        """Whether the most negative integer of that many bits is left out."""
        return self.offset > -(2 ** (self.integer_bits - 1))

    @property
    def is_symmetric(self) -> bool:
        """Whether the negated integers are of the grid too."""
        return self.offset == -self.highest

    def __str__(self) -> str:
        few = [str(integer) for integer in self.integers]
        if len(few) > 8:
            few[2:-1] = ["..."]
        return f"{self.name} ({', '.join(few)})"


def signed_bits(lowest: int, highest: int) -> int:
    """Bits of the narrowest signed integers from ``lowest`` to ``highest``.

    Example:
        >>> signed_bits(-2, 1), signed_bits(-2, 2), signed_bits(0, 127)
        (2, 3, 8)
    """
    return 1 + max((-lowest - 1).bit_length() if lowest < 0 else 0, max(highest, 0).bit_length())


def weight_datatype(lowest: int, highest: int) -> str:
    """The smallest type of qonnx for weights from ``lowest`` to ``highest``.

    Example:
        >>> weight_datatype(-1, 1), weight_datatype(-2, 2), weight_datatype(-127, 127)
        ('TERNARY', 'INT3', 'INT8')
    """
    return "TERNARY" if (lowest, highest) == (-1, 1) else f"INT{signed_bits(lowest, highest)}"


def odd(bits: int) -> Grid:
    """Odd integers ``2 q - (2**b - 1)``, rounded to: equation 3 of the paper for any bit-width.

    Example:
        >>> print(odd(2), odd(4), odd(4).divisor)
        odd (-3, -1, 1, 3) odd (-15, -13, ..., 15) 15
    """
    levels = _places(bits) - 1
    return Grid("odd", levels, -levels, step=2)


def integer(bits: int) -> Grid:
    """All integers of two's complement, rounded to.

    Example:
        >>> integer(8).integers[0], integer(8).highest, integer(8).datatype
        (-128, 127, 'INT8')
    """
    places = _places(bits, least=2)  # of one bit are -1 and 0: no positive weight
    return Grid(f"int{bits}", places - 1, -places // 2)


def symmetric(bits: int) -> Grid:
    """The integers of two's complement without the most negative one, rounded to.

    Example:
        >>> symmetric(8).integers[0], symmetric(8).highest, symmetric(8).is_narrow
        (-127, 127, True)
    """
    highest = _places(bits, least=2) // 2 - 1
    return Grid(f"symmetric{bits}", 2 * highest, -highest)


def modified(bits: int) -> Grid:
    """All integers of two's complement in equal bins: they nest, their mean is half a step below 0.

    Example:
        >>> print(modified(2), modified(2).divisor, {q >> 6 for q in modified(8).integers})
        modified (-2, -1, 0, 1) 2 {0, 1, -2, -1}
    """
    places = _places(bits)
    return Grid("modified", places - 1, -places // 2, rounding="floor")


def centered(bits: int) -> Grid:
    """Odd integers in equal bins, each in the middle of its own: they nest, and their mean is 0.

    Example:
        >>> print(centered(2), centered(2).divisor)
        centered (-3, -1, 1, 3) 4
    """
    return replace(odd(bits), name="centered", rounding="floor")


def double(bits: int, stored: int = 8) -> Grid:
    """Integers of ``stored`` bits, divided by a power of two and rounded again.

    Of all bit-widths only those of ``stored`` bits have to be kept. That is not rounding once: a
    value can move twice in one direction.

    Raises:
        BitWidthError: more bits than are stored.

    Example:
        >>> print(double(2), double(2).shift, double(2).finer)
        double (-2, -1, 0, 1) 64 symmetric8 (-127, -126, ..., 127)
    """
    if _places(bits) > _places(stored):
        raise BitWidthError(f"double: expected at most the {stored} bits stored, got {bits}")
    finer, coarse = symmetric(stored), symmetric(bits) if bits == stored else integer(bits)
    return replace(coarse, name="double", finer=finer, shift=_places(stored - bits, least=0))


def cascade(bits: int, stored: int = 8) -> Grid:
    """Integers of ``stored`` bits, halved and rounded again for each bit less.

    Cascade rounding of Vertical Layering (arXiv:2212.05326): a bit-width is rounded from the next
    higher one. Of all of them only those of ``stored`` bits have to be kept.

    Raises:
        BitWidthError: more bits than are stored.

    Example:
        >>> print(cascade(2), cascade(2).shift, cascade(2).halves, cascade(8) == double(8))
        cascade (-2, -1, 0, 1) 64 True False
    """
    return replace(double(bits, stored), name="cascade", halves=True)


def _places(bits: int, least: int = 1) -> int:
    """``2**bits``."""
    if not is_whole(bits) or not least <= bits <= MAX_BITS:
        raise BitWidthError(f"grid: expected {least} to {MAX_BITS} bits, got {bits!r}")
    return 2 ** int(bits)


Family = Callable[[int], Grid]
"""Bit-width -> grid. Within a family only the `Numbers` differ."""

FAMILIES: dict[str, Family] = {
    family.__name__: family
    for family in (odd, integer, symmetric, modified, centered, double, cascade)
}
"""Name -> family."""

_ROUNDED_AGAIN = {"double": double, "cascade": cascade}
"""Families whose grids depend on the bits that are stored."""


def grids_of(family: str, bits: Iterable[int]) -> dict[int, Grid]:
    """The grids of a family at some bit-widths, of which the integers of the largest are stored.

    Args:
        family: a name out of `FAMILIES`.
        bits: the bit-widths.

    Example:
        >>> print(grids_of("double", [2, 4])[2].finer, grids_of("centered", [2, 4])[2])
        symmetric4 (-7, -6, ..., 7) centered (-3, -1, 1, 3)
    """
    chosen = sorted(bits)
    again = _ROUNDED_AGAIN.get(family)
    make = partial(again, stored=chosen[-1]) if again else FAMILIES[family]
    return {bit: make(bit) for bit in chosen}


WeightFormat = Grid
"""A grid of at most four integers, which a branch stores in two bits."""

WEIGHT_FORMATS: dict[str, Grid] = {
    # the paper's levels -1, -1/3, 1/3, 1; the range of the published code
    "odd": odd(2),
    # the least squared error for normally distributed weights is at 2.1 and 1.2; three standard
    # deviations would start 87% of them as the ternary 0, and none of uniform ones as -2
    "int2": replace(integer(2), sigmas=2.0),
    "ternary": replace(symmetric(2), name="ternary", sigmas=1.2),
}
"""Name -> format of the branches' weights."""

ODD = WEIGHT_FORMATS["odd"]
"""The paper's format, and the default."""
