"""Which branches run at which bit-width: pure arithmetic, no tensors (paper, section 3.4)."""

from collections.abc import Iterable, Mapping, Sequence
from numbers import Integral

from brevitas_multiquant.errors import BitWidthError, SelectionError

BRANCH_BITS = 2
"""Weight bits of every branch (paper, section 3.3)."""

MIN_BITS, MAX_BITS = 2, 16

Selection = dict[int, tuple[int, ...]]
"""Bit-width -> indices (from 0) of the branches that run: ascending, the half one last.

A branch carries two bits. At an odd bit-width the last branch listed runs at half of its
multiply-accumulates, as a channel slice of itself: the *half branch* (paper, section 3.4).
"""


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


def check_bits(bits: Sequence[int]) -> tuple[int, ...]:
    """Candidate bit-widths, checked and in ascending order.

    Raises:
        BitWidthError: empty, repeated, not whole, or outside 2..16.

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
        if not MIN_BITS <= bit <= MAX_BITS:
            raise BitWidthError(f"bits: expected {MIN_BITS} to {MAX_BITS}, got {bit} in {values}")
    if len(set(values)) != len(values):
        raise BitWidthError(f"bits: expected each bit-width once, got {values}")
    return tuple(sorted(int(bit) for bit in values))


def branches_at(bits: int) -> int:
    """Branches that run at a bit-width, a half one included: ``b / 2``, rounded up.

    Example:
        >>> branches_at(4), branches_at(5)
        (2, 3)
    """
    return -(-bits // BRANCH_BITS)


def branch_count(bits: Sequence[int]) -> int:
    """Branches that a candidate list needs: those of its largest bit-width.

    Example:
        >>> branch_count([2, 4, 6, 8])
        4
    """
    return branches_at(max(bits))


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
        selection[bit] = tuple(sorted(by_load[: branches_at(bit)]))
        for branch in selection[bit]:
            load[branch] += 2.0 ** (-2 * bit)
    return selection


def serial(bits: Sequence[int]) -> Selection:
    """The first branches at every bit-width: the paper's baseline (figure 2a).

    Example:
        >>> serial([2, 4])
        {2: (0,), 4: (0, 1)}
    """
    return {bit: tuple(range(branches_at(bit))) for bit in sorted(bits)}


STRATEGIES = {"amortized": amortized, "serial": serial}


def resolve_selection(
    selection: str | Mapping[int, Sequence[int]], bits: Sequence[int]
) -> Selection:
    """A strategy's name, or an explicit mapping, as a checked selection.

    Args:
        selection: ``"amortized"``, ``"serial"``, or bit-width -> branch indices from 0, in any
            order but for the last one of an odd bit-width, which runs at half.
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
    if len(set(chosen)) != branches_at(bit) or len(chosen) != branches_at(bit):
        raise SelectionError(
            f"selection[{bit}]: expected {branches_at(bit)} distinct branches, got {chosen}"
        )
    if not set(chosen) <= set(range(count)):
        raise SelectionError(
            f"selection[{bit}]: expected branch indices 0 to {count - 1}, got {chosen}"
        )
    whole = branches_at(bit) - bit % BRANCH_BITS
    first, last = chosen[:whole], chosen[whole:]
    return (*sorted(int(branch) for branch in first), *(int(branch) for branch in last))


def half_branch(selection: Selection, bits: int) -> int | None:
    """The branch that runs as half of itself at a bit-width: the last one where it is odd.

    Example:
        >>> half_branch(amortized([2, 3, 4]), 3), half_branch(amortized([2, 3, 4]), 4)
        (1, None)
    """
    return selection[bits][-1] if bits % BRANCH_BITS else None


def whole_bits(selection: Selection, branch: int) -> tuple[int, ...]:
    """Bit-widths at which a branch runs whole, ascending.

    Example:
        >>> whole_bits(amortized([2, 4, 6, 8]), 0)
        (2, 8)
    """
    return tuple(
        bits
        for bits, chosen in selection.items()
        if branch in chosen and half_branch(selection, bits) != branch
    )


def half_bits(selection: Selection, branch: int) -> tuple[int, ...]:
    """Bit-widths at which a branch runs as half of itself, ascending.

    Example:
        >>> half_bits(amortized([2, 3, 4]), 1)
        (3,)
    """
    return tuple(bits for bits in selection if half_branch(selection, bits) == branch)
