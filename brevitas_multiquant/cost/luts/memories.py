"""Which memory each layer's tables, weights and lines go to, so that an accelerator takes few LUTs.

FINN puts threshold tables where the fewest bits stay unused, which is nearly always LUTs, and lines
of images in LUTs altogether. Block RAMs are then left over on most boards.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from brevitas_multiquant.cost.luts.nodes import (
    DepthwiseProduct,
    MatrixProduct,
    Node,
    Thresholds,
    Window,
)
from brevitas_multiquant.cost.luts.products import DspBlock, uncounted_weight_luts
from brevitas_multiquant.cost.luts.rules import resources

NEVER = 2**20
"""A depth that no table reaches: UltraRAMs of most chips cannot be filled by a bitstream."""


def fewest_luts(nodes: Sequence[Node], bram18: int, dsp: DspBlock = "DSP48E2") -> tuple[Node, ...]:
    """The same layers, each with the memory style that makes all of them together take few LUTs.

    Parallelism stays, and so do cycles. The choice is the best one there is, not a rule of thumb:
    the knapsack over block RAMs is solved exactly, and of equal LUTs the fewest block RAMs win.
    Where the block RAMs do not even hold the choice that takes the fewest, that one is made.
    Weights of products in DSPs, whose LUTs FINN's estimate leaves out, are counted here.

    Args:
        nodes: folded layers.
        bram18: block RAMs of 18 kbit that they may take together.
        dsp: the board's kind of DSP.

    Example:
        >>> from brevitas_multiquant.cost.luts import total
        >>> layers = [Thresholds(64, 64, 17, 8), Window(64, (10, 10), (3, 3), 8)]
        >>> [total(fewest_luts(layers, bram18)).luts for bram18 in (0, 4, 16)]
        [4947, 4635, 555]
    """
    choices = [_choices(node, dsp) for node in nodes]
    fewest = sum(min(brams for brams, _, _ in some) for some in choices)
    budget = max(bram18, fewest)
    best, taken = np.zeros(budget + 1, dtype=np.int64), []
    for some in choices:
        best, which = _with_one_more(best, some)
        taken.append(which)
    left = int(best.argmin())  # the first: fewest block RAMs
    chosen: list[Node] = []
    for some, which in zip(reversed(choices), reversed(taken), strict=True):
        brams, _, node = some[which[left]]
        chosen.append(node)
        left -= brams
    return tuple(reversed(chosen))


Choice = tuple[int, int, Node]
"""Block RAMs, LUTs, and the layer that takes so many."""
_TOO_MANY = np.iinfo(np.int64).max // 2


def _with_one_more(best: np.ndarray, some: Sequence[Choice]) -> tuple[np.ndarray, np.ndarray]:
    """Least LUTs for each exact number of block RAMs with one layer more, and its choices."""
    costs = np.full((len(some), len(best)), _TOO_MANY)
    for row, (brams, luts, _) in zip(costs, some, strict=True):
        if brams < len(best):
            row[brams:] = best[: len(best) - brams] + luts
    which = costs.argmin(0)
    return np.minimum(costs.min(0), _TOO_MANY), which


def _choices(node: Node, dsp: DspBlock) -> list[Choice]:
    """What a layer may be, without those that take no less of anything than another."""
    candidates = [node, *_CANDIDATES.get(type(node), _no_other)(node)]
    costs = [(resources(one, dsp), one) for one in candidates]
    choices = [
        (cost.bram18, cost.luts + _uncounted(one, dsp), one) for cost, one in costs if not cost.uram
    ]
    kept: list[Choice] = []
    for choice in sorted(choices, key=lambda one: one[:2]):
        if not kept or choice[1] < kept[-1][1]:
            kept.append(choice)
    return kept or [(costs[0][0].bram18, costs[0][0].luts, node)]


def _uncounted(node: Node, dsp: DspBlock) -> int:
    """LUTs of weights that FINN's estimate leaves out: without them they were free in LUTs."""
    products = (MatrixProduct, DepthwiseProduct)
    return uncounted_weight_luts(node, dsp) if isinstance(node, products) else 0


def _no_other(node: Node) -> Iterator[Node]:
    return iter(())


def _tables(node: Thresholds) -> Iterator[Node]:
    """Each bit's table is twice as deep as the one before: block RAM from one of them on."""
    first = node.channels // node.pe
    for stage in range(node.output_bits + 1):
        yield replace(node, bram_from=first * 2**stage, uram_from=NEVER)


def _lines(node: Window) -> Iterator[Node]:
    yield from (replace(node, ram_style="distributed"), replace(node, ram_style="block"))


def _weights(node: MatrixProduct | DepthwiseProduct) -> Iterator[Node]:
    yield from (replace(node, ram_style="distributed"), replace(node, ram_style="block"))


_CANDIDATES: dict[type[Node], Callable[[Any], Iterator[Node]]] = {
    Thresholds: _tables,
    Window: _lines,
    MatrixProduct: _weights,
    DepthwiseProduct: _weights,
}
