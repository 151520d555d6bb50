"""Which integers the weights of branches are: a row of a table, never a branch of code.

A quantizer places each weight w within its range (l, u) at ``q = round(levels * clip((w - l) /
(u - l), 0, 1))``, the same way for every format; a format says which integer each q stands for,
``integer = step * q + offset``, and by which divisor the layer's output scale turns integers into
the paper's real weights, which lie between -1 and 1.
"""

from dataclasses import dataclass

from brevitas_multiquant.core.selection import BRANCH_BITS


@dataclass(frozen=True)
class WeightFormat:
    """A set of evenly spaced integers that a weight can be.

    The range that a quantizer starts with spans the integers evenly with the weight 0 where the
    integer 0 is: from ``-sigmas`` standard deviations of the weights where the smallest integer
    is ``-divisor``. For ``int2`` that is l = -2 and u = +1 standard deviations, two steps below 0
    and one above; for the symmetric formats l = -u.

    Args:
        name: what users call it.
        integers: ascending, two to four of them.
        datatype: the smallest type of qonnx that holds them.
        sigmas: standard deviations of the weights that ``divisor`` starts at.

    Example:
        >>> int2 = WEIGHT_FORMATS["int2"]
        >>> int2.levels, int2.step, int2.offset, int2.divisor, int2.integer_bits
        (3, 1, -2, 2, 2)
        >>> print(int2)
        int2 (-2, -1, 0, 1)
    """

    name: str
    integers: tuple[int, ...]
    datatype: str
    sigmas: float

    def __post_init__(self) -> None:
        assert 2 <= len(self.integers) <= 2**BRANCH_BITS, "a weight is stored in two bits"
        assert self.integers == tuple(self.offset + self.step * q for q in range(self.levels + 1))

    @property
    def levels(self) -> int:
        """Largest q."""
        return len(self.integers) - 1

    @property
    def step(self) -> int:
        """From one integer to the next."""
        return self.integers[1] - self.integers[0]

    @property
    def offset(self) -> int:
        """The smallest integer."""
        return self.integers[0]

    @property
    def divisor(self) -> int:
        """Largest magnitude: integers divided by it lie between -1 and 1."""
        return max(-self.integers[0], self.integers[-1])

    @property
    def integer_bits(self) -> int:
        """Bits of the signed integers in hardware; in memory and files it is always two."""
        return signed_bits(self.integers[0], self.integers[-1])

    @property
    def is_narrow(self) -> bool:
        """Whether the most negative integer of that many bits is left out."""
        return self.integers[0] > -(2 ** (self.integer_bits - 1))

    @property
    def is_symmetric(self) -> bool:
        """Whether the negated integers are of the format too."""
        return self.integers[0] == -self.integers[-1]

    @property
    def negated_datatype(self) -> str:
        """The smallest type of qonnx for these integers and the negated ones in one tensor."""
        return weight_datatype(-self.divisor, self.divisor)

    def __str__(self) -> str:
        return f"{self.name} ({', '.join(map(str, self.integers))})"


def signed_bits(lowest: int, highest: int) -> int:
    """Bits of the narrowest signed integers from ``lowest`` to ``highest``.

    Example:
        >>> signed_bits(-2, 1), signed_bits(-2, 2), signed_bits(0, 127)
        (2, 3, 8)
    """
    return 1 + max((-lowest - 1).bit_length() if lowest < 0 else 0, max(highest, 0).bit_length())


_FORMATS = (
    # the paper's levels -1, -1/3, 1/3, 1; the range of the published code
    WeightFormat("odd", (-3, -1, 1, 3), "INT3", sigmas=3.0),
    # the least squared error for normally distributed weights is at 2.1 and 1.2; three standard
    # deviations would start 87% of them as the ternary 0, and none of uniform ones as -2
    WeightFormat("int2", (-2, -1, 0, 1), "INT2", sigmas=2.0),
    WeightFormat("ternary", (-1, 0, 1), "TERNARY", sigmas=1.2),
)
WEIGHT_FORMATS = {one.name: one for one in _FORMATS}
"""Name -> format."""

_DATATYPES = {(one.integers[0], one.integers[-1]): one.datatype for one in _FORMATS}


def weight_datatype(lowest: int, highest: int) -> str:
    """The smallest type of qonnx for weights from ``lowest`` to ``highest``.

    Example:
        >>> weight_datatype(-1, 1), weight_datatype(-2, 2), weight_datatype(-127, 127)
        ('TERNARY', 'INT3', 'INT8')
    """
    return _DATATYPES.get((lowest, highest), f"INT{signed_bits(lowest, highest)}")


ODD = WEIGHT_FORMATS["odd"]
"""The paper's format, and the default."""
