"""Fractional bit-widths to whole ones, as near to a budget as they get and never above it."""

import heapq
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from itertools import combinations, count, pairwise, product
from math import inf
from typing import Any

from brevitas_multiquant.cost.terms import Term, total_of
from brevitas_multiquant.errors import BudgetError

Gain = Callable[[Any, int, int], float]
"""(width, candidate, next higher candidate) -> what the step up is worth, above 0."""

ROUNDING = 1e-12
"""Relative: sums of floats in another order differ by less, and budgets are sums themselves."""


def round_to_budget(
    bits: Mapping[Any, float],
    candidates: Mapping[Any, Sequence[int]],
    terms: Sequence[Term],
    budget: float | Sequence[float],
    gain: Gain | None = None,
) -> dict[Any, int]:
    """Whole bits near fractional ones, at or below a budget; no single step up fits any more.

    From the candidates at or below, steps up are taken by the best gain per cost, as long as they
    fit: those within the fractional bit-widths first, then whatever fits. If rounding down is above
    the budget, steps down by the least loss per saved cost come first. A step up that lowers the
    cost, as from LUTs to DSPs, is taken at once.

    Args:
        bits: width -> real-valued bits, within its candidates.
        candidates: width -> whole bits that it may have.
        terms: the cost; `brevitas_multiquant.cost.terms.Term`.
        budget: most of each resource of the terms, ``inf`` where there is no limit; a number for a
            single one.
        gain: of each step; default: how much of it ``bits`` have made, and beyond them less with
            every bit.

    Returns:
        width -> one of its candidates, in the order of ``bits``.

    Raises:
        BudgetError: the widths have no candidates, or no step leads below the budget.

    Example:
        >>> learned = {"conv1": 3.4, "conv2": 2.7, "fc": 4.1}
        >>> both = Term(("conv1", "conv2"), lambda one, other: 1000 * (one + other))
        >>> candidates = dict.fromkeys(learned, range(2, 9))
        >>> terms = [both, Term(("fc",), lambda bits: 10 * bits)]
        >>> round_to_budget(learned, candidates, terms, 6080)
        {'conv1': 3, 'conv2': 3, 'fc': 8}
    """
    walk = _Walk(bits, candidates, terms, budget, gain or _made_by(bits))
    walk.down()
    walk.up({width: _at_or_above(walk.candidates[width], bits[width]) for width in bits})
    walk.up({width: walk.candidates[width][-1] for width in bits})
    return walk.chosen


def steps_up(
    candidates: Mapping[Any, Sequence[int]], terms: Sequence[Term], gain: Gain
) -> list[tuple[tuple[float, ...], dict[Any, int]]]:
    """From the fewest bits to the most, step by step by the best gain per cost.

    Args:
        candidates: width -> whole bits that it may have.
        terms: the cost.
        gain: of each step.

    Returns:
        (cost, width -> bits) at the start and after each step.

    Example:
        >>> terms = [Term(("a",), lambda bits: bits), Term(("b",), lambda bits: 10 * bits)]
        >>> path = steps_up({"a": (2, 3), "b": (2, 3)}, terms, lambda *step: 1.0)
        >>> [(cost, *bits.values()) for (cost,), bits in path]
        [(22, 2, 2), (23, 3, 2), (33, 3, 3)]
    """
    least, most = ({w: pick(of) for w, of in candidates.items()} for pick in (min, max))
    ends = zip(total_of(terms, least), total_of(terms, most), strict=True)
    room = [2 * max(pair) for pair in ends]  # more than any step needs, and a scale for each
    walk = _Walk({w: float(bits) for w, bits in least.items()}, candidates, terms, room, gain)
    path = [(walk.cost, dict(walk.chosen))]
    walk.up(most)
    for cost, width, to in walk.steps:
        path.append((cost, {**path[-1][1], width: to}))
    return path


def _made_by(bits: Mapping[Any, float]) -> Gain:
    def made(width: Any, low: int, high: int) -> float:
        share: float = (bits[width] - low) / (high - low)
        return share if share > 0 else 2.0 ** (share - 1)

    return made


def _at_or_below(candidates: Sequence[int], bits: float) -> int:
    return next((one for one in reversed(candidates) if one <= bits + ROUNDING), candidates[0])


def _at_or_above(candidates: Sequence[int], bits: float) -> int:
    return next((one for one in candidates if one >= bits - ROUNDING), candidates[-1])


class _Walk:
    """From candidate to neighbouring candidate, one width at a time."""

    def __init__(
        self,
        bits: Mapping[Any, float],
        candidates: Mapping[Any, Sequence[int]],
        terms: Sequence[Term],
        budget: float | Sequence[float],
        gain: Gain,
    ) -> None:
        self.budget = tuple(budget) if isinstance(budget, Sequence) else (budget,)
        self.gain = gain
        self.candidates = {width: sorted(candidates.get(width, ())) for width in bits}
        empty = [width for width, found in self.candidates.items() if not found]
        if empty:
            raise BudgetError(f"candidates: expected bits for {empty[0]!r}, got none")
        self.chosen = {width: _at_or_below(self.candidates[width], bits[width]) for width in bits}
        self.terms: dict[Any, list[Term]] = defaultdict(list)
        self.beside: dict[Any, set[Hashable]] = defaultdict(set)
        for term in terms:
            for width in dict.fromkeys(term.widths):
                self.terms[width].append(term)
                self.beside[width].update(term.widths)
        self.cost = total_of(terms, self.chosen) or (0,) * len(self.budget)
        if len(self.cost) != len(self.budget):
            raise BudgetError(
                f"budget: expected {len(self.cost)} numbers, one for each resource of the terms, "
                f"got {budget!r}"
            )

        self.steps: list[tuple[tuple[float, ...], Any, int]] = []

    def _change(self, width: Any, to: int) -> tuple[float, ...]:
        """What a step adds to each resource."""
        terms, bits = self.terms[width], self.chosen
        before, after = total_of(terms, bits), total_of(terms, {**_local(terms, bits), width: to})
        return tuple(b - a for a, b in zip(before, after, strict=True)) or (0,) * len(self.cost)

    def _after(self, change: Sequence[float]) -> tuple[float, ...]:
        return tuple(a + b for a, b in zip(self.cost, change, strict=True))

    def _over(self, cost: Sequence[float]) -> float:
        """By which part of the budget, summed over resources, a cost is above it."""
        return sum(
            self._part(one - most, most)
            for one, most in zip(cost, self.budget, strict=True)
            if one > most + abs(most) * ROUNDING
        )

    @staticmethod
    def _part(cost: float, most: float) -> float:
        return 0.0 if most == inf else cost / (abs(most) or 1)

    def _share(self, change: Sequence[float]) -> float:
        return sum(self._part(one, most) for one, most in zip(change, self.budget, strict=True))

    def _steps(self, width: Any) -> Iterator[tuple[int, float]]:
        """Neighbouring candidates and the gain of going there, below 0 downwards."""
        for low, high in pairwise(self.candidates[width]):
            if self.chosen[width] == low:
                yield high, self.gain(width, low, high)
            elif self.chosen[width] == high:
                yield low, -self.gain(width, low, high)

    def up(self, highest: Mapping[Any, int]) -> None:
        """Steps up within the budget, by gain per cost, until none fits."""

        def worth(width: Any, to: int, gain: float, change: Sequence[float]) -> float | None:
            if to < self.chosen[width] or to > highest[width] or self._over(self._after(change)):
                return None
            cost = self._share(change)
            return gain / cost if cost > 0 else inf

        while self._best_first(worth):
            pass

    def down(self) -> None:
        """Steps to below the budget, by saved cost per loss.

        Raises:
            BudgetError: no step saves anything any more.
        """

        def worth(width: Any, to: int, gain: float, change: Sequence[float]) -> float | None:
            saved = self._over(self.cost) - self._over(self._after(change))
            if saved <= 0:
                return None
            return inf if gain >= 0 else saved / -gain

        while self._over(self.cost):
            if not self._best_first(worth) and not self._jump():
                got, least = (
                    ", ".join(f"{one:g}" for one in all) for all in (self.budget, self.cost)
                )
                raise BudgetError(
                    f"budget: expected at least {least}, the least that was found, got {got}: "
                    "raise it, or allow fewer bits as candidates"
                )

    def _jump(self) -> bool:
        """Two widths of one term at once, to any candidates, where no single step saves anything.

        FINN multiplies in DSPs from 4 bits of weights and of activations on: either alone saves no
        LUTs.
        """
        best, moves = self._over(self.cost), None
        pairs = {
            pair for of in self.terms.values() for t in of for pair in combinations(t.widths, 2)
        }
        for one, other in sorted(pairs, key=str):
            terms = list({id(t): t for t in (*self.terms[one], *self.terms[other])}.values())
            here = total_of(terms, self.chosen)
            for to in product(self.candidates[one], self.candidates[other]):
                moved = {**_local(terms, self.chosen), one: to[0], other: to[1]}
                after = total_of(terms, moved)
                change = tuple(b - a for a, b in zip(here, after, strict=True))
                if self._over(self._after(change)) < best:
                    best, moves = self._over(self._after(change)), (one, other, to, change)
        if moves is None:
            return False
        one, other, to, change = moves
        self.chosen |= {one: to[0], other: to[1]}
        self.cost = self._after(change)
        return True

    def _best_first(
        self, worth: Callable[[Any, int, float, Sequence[float]], float | None]
    ) -> bool:
        """Take steps in the order of their worth, renewed where a step changed it."""
        order, taken = count(), False
        queue: list[tuple[float, int, Any, int, float, int]] = []
        version: dict[Any, int] = dict.fromkeys(self.chosen, 0)

        def offer(width: Any) -> None:
            for to, gain in self._steps(width):
                value = worth(width, to, gain, self._change(width, to))
                if value is not None:
                    heapq.heappush(queue, (-value, next(order), width, to, gain, version[width]))

        for width in self.chosen:
            offer(width)
        while queue:
            _, _, width, to, gain, seen = heapq.heappop(queue)
            change = self._change(width, to)
            if seen != version[width] or worth(width, to, gain, change) is None:
                continue
            self.chosen[width], self.cost, taken = to, self._after(change), True
            self.steps.append((self.cost, width, to))
            for other in self.beside[width] | {width}:
                version[other] += 1
                offer(other)
        return taken


def _local(terms: Sequence[Term], bits: Mapping[Any, int]) -> dict[Any, int]:
    """The bits that some terms read."""
    return {width: bits[width] for term in terms for width in term.widths}
