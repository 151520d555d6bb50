"""Why a site of a network cannot run at the bits that somebody wants."""

from collections.abc import Iterator, Mapping, Sequence

Bits = tuple[int, int]
"""Of weights, of activations."""


def misfits(
    site: str,
    bits: Bits,
    candidates: Sequence[int],
    weight_bits: int | None,
    fixed: Mapping[str, Bits] | None,
    tied: bool,
) -> Iterator[str]:
    """Every reason against the bits of a site; none if it can run at them.

    Args:
        site: its name.
        bits: wanted.
        candidates: the network's bit-widths.
        weight_bits: those of all of its weights; None: each of the candidates is possible.
        fixed: the bits that its sites have always, of those that have.
        tied: whether a site's weights have as many bits as its activations.

    Example:
        >>> list(misfits("conv", (2, 4), [2, 4], 2, None, False))
        []
        >>> list(misfits("conv", (2, 3), [2, 4], 2, None, False))
        ['conv: expected activation bits of [2, 4], got 3']
    """
    weight, activation = bits
    if fixed is not None and site in fixed:
        own = tuple(fixed[site])
        if own != bits:
            yield f"{site}: expected the {own} bits that it was built with, got {tuple(bits)}"
        return
    if activation not in candidates:
        yield f"{site}: expected activation bits of {list(candidates)}, got {activation}"
    if weight_bits is None:
        if weight not in candidates:
            yield f"{site}: expected weight bits of {list(candidates)}, got {weight}"
    elif weight != weight_bits:
        yield f"{site}: expected the {weight_bits}-bit weights of branches, got {weight}"
    if tied and weight != activation:
        yield (
            f"{site}: expected weights and activations of the same bits, as this network was "
            f"built to train them, got {tuple(bits)}"
        )
