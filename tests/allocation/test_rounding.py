"""Fractional bit-widths to whole ones: against a rule that looks at everything, and all choices."""

import random
from itertools import product
from math import inf
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from brevitas_multiquant.allocation.rounding import round_to_budget
from brevitas_multiquant.cost.terms import Term, total_of
from brevitas_multiquant.errors import BudgetError

BITS = (2, 3, 4, 5, 6, 8)
NAMES = tuple("abcd")


def layers(seed: int) -> tuple[list[Term], dict[str, float]]:
    """Layers with a bit-width each, and two whose cost is of two of them: bilinear."""
    draw = random.Random(seed)
    macs = {name: draw.randint(10, 10_000) for name in NAMES}
    terms = [Term((name,), lambda bits, macs=macs[name]: macs * bits) for name in NAMES]
    both = draw.randint(10, 2_000)
    terms += [Term(pair, lambda a, b: both * a * b) for pair in (("a", "b"), ("b", "c"))]
    return terms, {name: draw.uniform(2, 8) for name in NAMES}


def cost_of(terms: list[Term], chosen: dict[str, int]) -> float:
    return total_of(terms, chosen)[0]


def gain(bits: dict[str, float], name: str, low: int, high: int) -> float:
    made = (bits[name] - low) / (high - low)
    return made if made > 0 else 2.0 ** (made - 1)


def slowly(bits: dict[str, float], terms: list[Term], budget: float) -> dict[str, int]:
    """The rule in words: all steps are looked at again after each one."""
    chosen = {name: max(one for one in BITS if one <= bits[name]) for name in bits}

    def moved(name: str, by: int) -> dict[str, int] | None:
        index = BITS.index(chosen[name]) + by
        return {**chosen, name: BITS[index]} if 0 <= index < len(BITS) else None

    while cost_of(terms, chosen) > budget:
        here, best = cost_of(terms, chosen), []
        for name in bits:
            if (lower := moved(name, -1)) is not None:
                saved = here - max(budget, cost_of(terms, lower))
                loss = gain(bits, name, lower[name], chosen[name])
                best.append((saved / loss, lower))
        chosen = max(best, key=lambda pair: pair[0])[1]
    for within in (True, False):
        while True:
            best = []
            for name in bits:
                higher = moved(name, 1)
                if higher is None or cost_of(terms, higher) > budget:
                    continue
                if within and chosen[name] >= bits[name]:
                    continue
                added = cost_of(terms, higher) - cost_of(terms, chosen)
                best.append((gain(bits, name, chosen[name], higher[name]) / added, higher))
            if not best:
                break
            chosen = max(best, key=lambda pair: pair[0])[1]
    return chosen


@pytest.mark.parametrize("seed", range(40))
def test_it_is_the_rule_that_looks_at_everything(seed: int) -> None:
    terms, bits = layers(seed)
    at_all_bits = [cost_of(terms, dict.fromkeys(NAMES, one)) for one in (BITS[0], BITS[-1])]
    rounded_down = {name: max(one for one in BITS if one <= bits[name]) for name in NAMES}
    budget = random.Random(seed).uniform(cost_of(terms, rounded_down), at_all_bits[1])
    got = round_to_budget(bits, dict.fromkeys(bits, BITS), terms, budget)
    assert got == slowly(bits, terms, budget) and list(got) == list(bits)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000), share=st.floats(0, 1.1))
def test_never_above_and_no_step_up_fits(seed: int, share: float) -> None:
    terms, bits = layers(seed)
    low, high = (cost_of(terms, dict.fromkeys(NAMES, one)) for one in (BITS[0], BITS[-1]))
    budget = low + share * (high - low)
    got = round_to_budget(bits, dict.fromkeys(bits, BITS), terms, budget)
    # as much above as a sum of floats may be
    assert cost_of(terms, got) <= budget * (1 + 1e-12)
    for name in NAMES:
        if got[name] < BITS[-1]:
            higher = {**got, name: BITS[BITS.index(got[name]) + 1]}
            assert cost_of(terms, higher) > budget


@pytest.mark.parametrize("seed", range(20))
def test_within_one_step_of_the_best_of_all_choices(seed: int) -> None:
    """True of separate costs and gains that fall; one step is what the last bit of room can be."""
    draw = random.Random(seed)
    costs = {name: draw.randint(1, 100) for name in NAMES}
    worth = {name: draw.uniform(1, 10) for name in NAMES}
    terms = [Term((name,), lambda bits, cost=costs[name]: cost * bits) for name in NAMES]
    budget = draw.randint(2 * sum(costs.values()), 8 * sum(costs.values()))

    def one_gain(name: str, low: int, high: int) -> float:
        return worth[name] * (4.0**-low - 4.0**-high)

    def value(chosen: dict[str, int]) -> float:
        return sum(one_gain(name, BITS[0], bits) for name, bits in chosen.items())

    every = (dict(zip(NAMES, bits, strict=True)) for bits in product(BITS, repeat=len(NAMES)))
    best = max(value(one) for one in every if cost_of(terms, one) <= budget)
    start = dict.fromkeys(NAMES, 2.0)
    got = round_to_budget(start, dict.fromkeys(NAMES, BITS), terms, budget, one_gain)
    missed = max(one_gain(name, bits, 9) for name, bits in got.items())
    assert best - missed <= value(got) <= best


def test_whole_bits_at_their_own_cost_stay() -> None:
    terms, _ = layers(0)
    uniform = dict.fromkeys(NAMES, 3)
    budget = cost_of(terms, uniform)
    assert round_to_budget(uniform, dict.fromkeys(NAMES, BITS), terms, budget) == uniform


def test_a_step_up_that_is_cheaper_is_taken() -> None:
    """As FINN's products, whose multipliers are LUTs up to 3 bits and DSPs from 4 on."""
    luts = {2: 100, 3: 200, 4: 0, 5: 0}
    term = Term(("a",), lambda bits: (luts[bits], 4 if bits >= 4 else 0))
    candidates = {"a": (2, 3, 4, 5)}
    assert round_to_budget({"a": 2.0}, candidates, [term], (150, inf)) == {"a": 2}
    assert round_to_budget({"a": 3.0}, candidates, [term], (150, inf)) == {"a": 5}
    assert round_to_budget({"a": 3.0}, candidates, [term], (150, 3)) == {"a": 2}


def test_many_channels_of_one_layer() -> None:
    """Each with a bit-width of its own, and one that all of them are multiplied with."""
    channels = [("weight", channel) for channel in range(300)]
    terms = [Term((channel, "input"), lambda w, a: w * a) for channel in channels]
    bits: dict[Any, float] = {channel: 3 + index / 300 for index, channel in enumerate(channels)}
    bits["input"] = 4.0
    candidates = {**dict.fromkeys(channels, range(9)), "input": (4,)}
    got = round_to_budget(bits, candidates, terms, 4 * (3 * 300 + 100))
    assert [got[channel] for channel in channels] == [3] * 200 + [4] * 100


@pytest.mark.parametrize(
    ("candidates", "budget", "words"),
    [
        ({"a": (2, 3)}, 19, "expected at least 20, the least that was found, got 19"),
        ({"a": ()}, 19, "candidates: expected bits for 'a', got none"),
        ({}, 19, "candidates: expected bits for 'a', got none"),
        ({"a": (2, 3)}, (20, 1), "expected 1 numbers"),
    ],
)
def test_refusals(candidates: Any, budget: Any, words: str) -> None:
    terms = [Term(("a",), lambda bits: 10 * bits)]
    with pytest.raises(BudgetError, match=words):
        round_to_budget({"a": 2.5}, candidates, terms, budget)


def test_two_steps_at_once_where_neither_saves_anything_alone() -> None:
    """Multipliers are DSPs only if both sides have 4 bits."""

    def product_of(weight: int, read: int) -> tuple[int, int]:
        return (0, 4) if min(weight, read) >= 4 else (100 + 10 * weight * read, 0)

    terms, candidates = [Term(("w", "a"), product_of)], {"w": (2, 3, 4), "a": (2, 3, 4)}
    low = {"w": 2.0, "a": 2.0}
    assert round_to_budget(low, candidates, terms, (50, inf)) == {"w": 4, "a": 4}
    with pytest.raises(BudgetError, match="at least 0, 4, the least that was found, got 50, 3"):
        round_to_budget(low, candidates, terms, (50, 3))
