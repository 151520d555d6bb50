"""Which branches run at which bit-width: pure arithmetic, no tensors (paper, section 3.4)."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from numbers import Integral

from brevitas_multiquant.errors import BitWidthError, SelectionError

BRANCH_BITS = 2
"""Weight bits of every branch (paper, section 3.3)."""

MIN_BITS, MAX_BITS = 2, 16

DEFAULT_SELECTION = "amortized"

Selection = dict[int, tuple[int, ...]]
"""Bit-width -> indices (from 0) of the branches that run: what people write and files hold.

Each branch carries two bits, the last one listed what is left: at an odd bit-width it runs at half
of its multiply-accumulates, as a channel slice of itself (paper, section 3.4). Whole branches stand
in ascending order. `uses_at` says the same with the widths written out.
"""


@dataclass(frozen=True)
class BranchUse:
    """A branch as it runs at some bit-width.

    Args:
        index: of the branch, from 0.
        width: the share of its multiply-accumulates that runs: 1, or 1/2 of a *half branch*.

    Example:
        >>> print(BranchUse(1), BranchUse(1, Fraction(1, 2)))
        1 1/2
    """

    index: int
    width: Fraction = Fraction(1)

    def __str__(self) -> str:
        return f"{self.index}/{self.width.denominator}".removesuffix("/1")


def is_whole(value: object) -> bool:
    """Whether a value is a whole number by type, of Python or numpy; neither 4.0 nor True is.

    Example:
        >>> is_whole(4), is_whole(4.0), is_whole(True)
        (True, False, False)
    """
    return isinstance(value, Integral) and not isinstance(value, bool)


def chosen_bits(bits: Iterable[int], candidates: Sequence[int], where: str) -> tuple[int, ...]:
    """Some of a network's bit-widths, checked, in ascending order.

    Args:
        bits: as a user lists them; whole numbers of numpy become ints.
        candidates: the bit-widths of the network.
        where: what starts the error.

    Raises:
        BitWidthError: not a list, none, or one that is no candidate.

    Example:
        >>> chosen_bits([8, 2], (2, 4, 8), "export")
        (2, 8)
    """
    listed = list(bits) if isinstance(bits, Iterable) else None
    if not listed or not all(is_whole(bit) and bit in candidates for bit in listed):
        raise BitWidthError(
            f"{where}: expected bits out of {list(candidates)}, got "
            f"{bits if listed is None else listed!r}"
        )
    return tuple(sorted({int(bit) for bit in listed}))


def check_bits(bits: Sequence[int], least: int = MIN_BITS) -> tuple[int, ...]:
    """Candidate bit-widths, checked and in ascending order.

    Raises:
        BitWidthError: empty, repeated, not whole, or outside ``least`` to 16.

    Example:
        >>> check_bits([8, 2, 4])
        (2, 4, 8)
    """
    try:
        values = list(bits)
    except TypeError:
        raise BitWidthError(f"bits: expected a list such as [2, 4, 6, 8], got {bits!r}") from None
    if not values:
        raise BitWidthError("bits: expected at least one bit-width such as [2, 4, 6, 8], got none")
    for bit in values:
        if not is_whole(bit):
            raise BitWidthError(f"bits: expected whole numbers, got {bit!r} in {values}")
        if not least <= bit <= MAX_BITS:
            raise BitWidthError(f"bits: expected {least} to {MAX_BITS}, got {bit} in {values}")
    if len(set(values)) != len(values):
        raise BitWidthError(f"bits: expected each bit-width once, got {values}")
    return tuple(sorted(int(bit) for bit in values))


def branch_count(bits: Sequence[int]) -> int:
    """Branches that a candidate list needs, those of its largest bit-width: half of it, rounded up.

    Example:
        >>> branch_count([2, 4, 6, 8]), branch_count([5])
        (4, 3)
    """
    return -(-max(bits) // BRANCH_BITS)


def amortized(bits: Sequence[int]) -> Selection:
    """Spread the activation error: least-loaded branches first (paper, section 3.4).

    From the smallest bit-width up, each takes the branches that carry the least activation
    error so far; running at ``b`` bits adds ``2**(-2b)``, the power of its rounding error.
    Ties go to the lower index.

    Example:
        >>> amortized([2, 4, 6, 8])
        {2: (0,), 4: (1, 2), 6: (1, 2, 3), 8: (0, 1, 2, 3)}
        >>> amortized([2, 3, 4])
        {2: (0,), 3: (0, 1), 4: (0, 1)}
    """
    load = [0.0] * branch_count(bits)
    selection: Selection = {}
    for bit in sorted(bits):
        by_load = sorted(range(len(load)), key=lambda branch: (load[branch], branch))
        selection[bit] = tuple(sorted(by_load[: branch_count([bit])]))
        for branch in selection[bit]:
            load[branch] += 2.0 ** (-2 * bit)
    return selection


def serial(bits: Sequence[int]) -> Selection:
    """The first branches at every bit-width: the paper's baseline (figure 2a).

    Example:
        >>> serial([2, 4])
        {2: (0,), 4: (0, 1)}
    """
    return {bit: tuple(range(branch_count([bit]))) for bit in sorted(bits)}


STRATEGIES = {"amortized": amortized, "serial": serial}


def resolve_selection(
    selection: str | Mapping[int, Sequence[int]], bits: Sequence[int]
) -> Selection:
    """A strategy's name, or an explicit mapping, as a checked selection.

    Args:
        selection: ``"amortized"``, ``"serial"``, or bit-width -> branch indices from 0, in any
            order except for the last one of an odd bit-width, which runs at half.
        bits: checked candidate bit-widths.

    Raises:
        SelectionError: unknown name, or a mapping that leaves out a bit-width or a branch, names
            one that does not exist, or selects other than ``b / 2`` (rounded up) distinct ones.

    Example:
        >>> resolve_selection({2: [1], 3: [1, 0], 4: [1, 0]}, [2, 3, 4])
        {2: (1,), 3: (1, 0), 4: (0, 1)}
    """
    if isinstance(selection, str):
        if selection not in STRATEGIES:
            raise SelectionError(
                f"selection: expected one of {sorted(STRATEGIES)} or a mapping, got {selection!r}"
            )
        return STRATEGIES[selection](bits)
    return _check_mapping(selection, bits)


def _check_mapping(selection: Mapping[int, Sequence[int]], bits: Sequence[int]) -> Selection:
    if (
        not isinstance(selection, Mapping)
        or not all(map(is_whole, selection))
        or set(selection) != set(bits)
    ):
        raise SelectionError(
            f"selection: expected one entry for each of the bit-widths {sorted(bits)}, "
            f"got {selection!r}"
        )
    return {bit: _check_branches(bit, selection[bit], branch_count(bits)) for bit in sorted(bits)}


def _check_branches(bit: int, listed: Iterable[int], count: int) -> tuple[int, ...]:
    if not isinstance(listed, Iterable):
        raise SelectionError(f"selection[{bit}]: expected a list of branch indices, got {listed!r}")
    chosen = tuple(listed)
    if not all(map(is_whole, chosen)):
        raise SelectionError(f"selection[{bit}]: expected whole numbers, got {chosen}")
    if len(set(chosen)) != branch_count([bit]) or len(chosen) != branch_count([bit]):
        raise SelectionError(
            f"selection[{bit}]: expected {branch_count([bit])} distinct branches, got {chosen}"
        )
    if not set(chosen) <= set(range(count)):
        raise SelectionError(
            f"selection[{bit}]: expected branch indices 0 to {count - 1}, got {chosen}"
        )
    branches = [int(branch) for branch in chosen]
    whole = [use.index for use in _uses(bit, branches) if use.width == 1]
    return (*sorted(whole), *branches[len(whole) :])


def _uses(bits: int, branches: Sequence[int]) -> tuple[BranchUse, ...]:
    carried = Fraction(max(bits, BRANCH_BITS), BRANCH_BITS)  # a body of 1 bit is no half branch
    return tuple(
        BranchUse(index, min(Fraction(1), carried - place)) for place, index in enumerate(branches)
    )


def uses_at(selection: Mapping[int, Sequence[int]], bits: int) -> tuple[BranchUse, ...]:
    """The branches that run at a bit-width, each with its width.

    Example:
        >>> print(*uses_at(amortized([2, 3, 4]), 3))
        0 1/2
    """
    return _uses(bits, selection[bits])


def bits_of_uses(selection: Mapping[int, Sequence[int]]) -> dict[BranchUse, tuple[int, ...]]:
    """Every use of every branch, by index, the widest first -> the bit-widths at which it runs.

    Example:
        >>> for use, bits in bits_of_uses(amortized([2, 3, 4])).items():
        ...     print(use, bits)
        0 (2, 3, 4)
        1 (4,)
        1/2 (3,)
    """
    found: dict[BranchUse, tuple[int, ...]] = {}
    for bits in sorted(selection):
        for use in uses_at(selection, bits):
            found[use] = (*found.get(use, ()), bits)
    return dict(sorted(found.items(), key=lambda item: (item[0].index, -item[0].width)))
