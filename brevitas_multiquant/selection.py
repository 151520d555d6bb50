"""Which branches run at which bit-width: pure arithmetic, no tensors (paper, section 3.4)."""

from collections.abc import Iterable, Mapping, Sequence
from numbers import Integral

from brevitas_multiquant.errors import BitWidthError, SelectionError

BRANCH_BITS = 2
"""Weight bits of every branch (paper, section 3.3)."""

MIN_BITS, MAX_BITS = 2, 16

Selection = dict[int, tuple[int, ...]]
"""Bit-width -> indices (from 0, ascending) of the branches that run."""


def check_bits(bits: Sequence[int]) -> tuple[int, ...]:
    """Candidate bit-widths, checked and in ascending order.

    Raises:
        BitWidthError: empty, repeated, not whole, outside 2..16, or odd.

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
        if not isinstance(bit, Integral) or isinstance(bit, bool):
            raise BitWidthError(f"bits: expected whole numbers, got {bit!r} in {values}")
        if not MIN_BITS <= bit <= MAX_BITS:
            raise BitWidthError(f"bits: expected {MIN_BITS} to {MAX_BITS}, got {bit} in {values}")
        if bit % BRANCH_BITS:
            raise BitWidthError(
                f"bits: expected even bit-widths, since a branch carries {BRANCH_BITS} bits, "
                f"got {bit} in {values}; use {bit - 1} or {bit + 1}"
            )
    if len(set(values)) != len(values):
        raise BitWidthError(f"bits: expected each bit-width once, got {values}")
    return tuple(sorted(int(bit) for bit in values))


def branch_count(bits: Sequence[int]) -> int:
    """Branches that a candidate list needs: ``max(bits) / 2``.

    Example:
        >>> branch_count([2, 4, 6, 8])
        4
    """
    return max(bits) // BRANCH_BITS


def amortized(bits: Sequence[int]) -> Selection:
    """Spread the activation error: least-loaded branches first (paper, section 3.4).

    From the smallest bit-width up, each takes the branches that carry the least activation
    error so far; running at ``b`` bits adds ``2**(-2b)``, the power of its rounding error.
    Ties go to the lower index.

    Example:
        >>> amortized([2, 4, 6, 8])
        {2: (0,), 4: (1, 2), 6: (1, 2, 3), 8: (0, 1, 2, 3)}
    """
    load = [0.0] * branch_count(bits)
    selection: Selection = {}
    for bit in sorted(bits):
        by_load = sorted(range(len(load)), key=lambda branch: (load[branch], branch))
        selection[bit] = tuple(sorted(by_load[: bit // BRANCH_BITS]))
        for branch in selection[bit]:
            load[branch] += 2.0 ** (-2 * bit)
    return selection


def serial(bits: Sequence[int]) -> Selection:
    """The first ``b / 2`` branches at every bit-width: the paper's baseline (figure 2a).

    Example:
        >>> serial([2, 4])
        {2: (0,), 4: (0, 1)}
    """
    return {bit: tuple(range(bit // BRANCH_BITS)) for bit in sorted(bits)}


STRATEGIES = {"amortized": amortized, "serial": serial}


def resolve_selection(
    selection: str | Mapping[int, Sequence[int]], bits: Sequence[int]
) -> Selection:
    """A strategy's name, or an explicit mapping, as a checked selection.

    Args:
        selection: ``"amortized"``, ``"serial"``, or bit-width -> branch indices from 0.
        bits: checked candidate bit-widths.

    Raises:
        SelectionError: unknown name, or a mapping that leaves out a bit-width or a branch, names
            one that does not exist, or selects other than ``b / 2`` distinct branches.

    Example:
        >>> resolve_selection({2: [1], 4: [0, 1]}, [2, 4])
        {2: (1,), 4: (0, 1)}
    """
    if isinstance(selection, str):
        if selection not in STRATEGIES:
            raise SelectionError(
                f"selection: expected one of {sorted(STRATEGIES)} or a mapping, got {selection!r}"
            )
        return STRATEGIES[selection](bits)
    return _check_mapping(selection, bits)


def _check_mapping(selection: Mapping[int, Sequence[int]], bits: Sequence[int]) -> Selection:
    if not isinstance(selection, Mapping) or set(selection) != set(bits):
        raise SelectionError(
            f"selection: expected one entry for each of the bit-widths {sorted(bits)}, "
            f"got {selection!r}"
        )
    branches = range(branch_count(bits))
    checked: Selection = {}
    for bit in sorted(bits):
        if not isinstance(selection[bit], Iterable):
            raise SelectionError(
                f"selection[{bit}]: expected a list of branch indices, got {selection[bit]!r}"
            )
        chosen = tuple(sorted(selection[bit]))
        if len(set(chosen)) != bit // BRANCH_BITS or len(chosen) != bit // BRANCH_BITS:
            raise SelectionError(
                f"selection[{bit}]: expected {bit // BRANCH_BITS} distinct branches, "
                f"got {tuple(selection[bit])}"
            )
        if not set(chosen) <= set(branches):
            raise SelectionError(
                f"selection[{bit}]: expected branch indices {branches.start} to "
                f"{branches.stop - 1}, got {tuple(selection[bit])}"
            )
        checked[bit] = chosen
    return checked


def bits_of_branch(selection: Selection, branch: int) -> tuple[int, ...]:
    """Bit-widths at which a branch runs, ascending.

    Example:
        >>> bits_of_branch(amortized([2, 4, 6, 8]), 0)
        (2, 8)
    """
    return tuple(bit for bit, chosen in selection.items() if branch in chosen)
