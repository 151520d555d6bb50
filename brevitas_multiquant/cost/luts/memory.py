"""How many memories of an FPGA hold a table of so many words of so many bits."""

from math import ceil

MEMORIES = (
    *(("uram", 72, 4096), ("uram", 36, 8192), ("uram", 18, 16384), ("uram", 9, 32768)),
    *(("bram18", 36, 512), ("bram18", 18, 1024), ("bram18", 9, 2048), ("luts", 1, 64)),
)
"""(resource, bits of a word, words): the shapes that FINN's tables of thresholds choose from."""

BRAM18_WORDS = {1: 16384, 2: 8192, 4: 4096, 9: 2048, 18: 1024, 36: 512}
"""Bits of a word -> words of a block RAM."""


def least_waste(width: int, depth: float, kinds: tuple[str, ...] = ()) -> tuple[str, int]:
    """The kind of memory that leaves the fewest bits unused, and how many of it.

    Follows ``get_memutil_alternatives``; of equals the first.

    Args:
        width: bits of a word.
        depth: words.
        kinds: resources to choose from; none: all.

    Example:
        >>> least_waste(11, 16), least_waste(36, 512)
        (('luts', 11), ('bram18', 1))
    """
    chosen = [memory for memory in MEMORIES if not kinds or memory[0] in kinds]
    counts = [(ceil(width / bits) * ceil(depth / words)) for _, bits, words in chosen]
    held = [count * bits * words for count, (_, bits, words) in zip(counts, chosen, strict=True)]
    best = held.index(min(held))
    return chosen[best][0], counts[best]


def bram18_for_weights(width: int, depth: int, with_parity: bool) -> int:
    """Block RAMs of a weight memory.

    Follows ``MVAU.bram_estimation`` and ``VVAU.bram_estimation``: the narrowest shape that holds a
    word, and where none does, 18 bits for more than 512 words and 36 for fewer.

    Args:
        width: bits of a word.
        depth: words.
        with_parity: whether every ninth bit holds data too; not in depthwise products.

    Example:
        >>> bram18_for_weights(40, 600, True), bram18_for_weights(40, 500, True)
        (3, 2)
    """
    widest = 18 if depth > BRAM18_WORDS[36] else 36
    shape = next((bits for bits in BRAM18_WORDS if width <= bits < 36), widest)
    usable = shape if with_parity else shape - shape // 9
    return ceil(depth / BRAM18_WORDS[shape]) * ceil(width / usable)


def bram18_for_lines(width: int, depth: int) -> int:
    """Block RAMs of a buffer of image lines.

    Follows ``ConvolutionInputGenerator_rtl.bram_estimation``: the widest shape that is deep enough;
    deeper buffers are rows of the deepest shape and one more row as deep as what is left.

    Args:
        width: bits of a word.
        depth: words.

    Example:
        >>> bram18_for_lines(8, 500), bram18_for_lines(8, 16384 + 500)
        (1, 9)
    """
    if depth == 0:
        return 0
    deepest = BRAM18_WORDS[1]
    rows = ceil(depth / deepest) - 1
    rest = depth % deepest if rows else depth
    shape = max(bits for bits, words in BRAM18_WORDS.items() if words >= rest)
    return rows * width + ceil(width / shape)


def uram(width: int, depth: int) -> int:
    """UltraRAMs of a memory, in their one shape outside Versal.

    Example:
        >>> uram(73, 4096)
        2
    """
    return ceil(width / 72) * ceil(depth / 4096)
