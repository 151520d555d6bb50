"""Which branches run at which bit-width: the paper's choice, properties, oracle, errors."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from brevitas_multiquant.core import selection
from brevitas_multiquant.core.selection import BranchUse
from brevitas_multiquant.errors import BitWidthError, MultiQuantError, SelectionError
from tests import reference

CANDIDATES = st.lists(st.sampled_from(range(2, 17)), min_size=1, unique=True)
FEW_BITS = st.lists(st.sampled_from(range(2, 17)), min_size=1, max_size=6, unique=True)


def test_the_papers_choice():
    """Section 3.4 numbers branches from 1: {1}, {2,3}, {2,3,4}, {1,2,3,4}."""
    assert selection.amortized([2, 4, 6, 8]) == {
        2: (0,),
        4: (1, 2),
        6: (1, 2, 3),
        8: (0, 1, 2, 3),
    }


def test_the_papers_choice_for_odd_bit_widths():
    """Section 3.4: {1}, {1} and half of {2}, {1,2}."""
    chosen = selection.amortized([2, 3, 4])
    assert chosen == {2: (0,), 3: (0, 1), 4: (0, 1)}
    assert selection.uses_at(chosen, 3) == (BranchUse(0), BranchUse(1, Fraction(1, 2)))


def test_serial_is_nested():
    assert selection.serial([2, 4, 6, 8]) == {2: (0,), 4: (0, 1), 6: (0, 1, 2), 8: (0, 1, 2, 3)}


@pytest.mark.parametrize("strategy", ["amortized", "serial"])
@given(bits=CANDIDATES)
def test_sizes_and_use(strategy, bits):
    chosen = selection.resolve_selection(strategy, bits)
    assert list(chosen) == sorted(bits)
    assert all(len(set(chosen[b])) == len(chosen[b]) == math.ceil(b / 2) for b in bits)
    assert all(list(branches) == sorted(branches) for branches in chosen.values())
    count = math.ceil(max(bits) / 2)
    assert {branch for c in chosen.values() for branch in c} == set(range(count))
    assert selection.resolve_selection(chosen, bits) == chosen


@given(bits=FEW_BITS)
@settings(deadline=None)
def test_loads_are_as_even_as_they_can_be(bits):
    """Up to 8 branches. Powers of two add up exactly: the oracle's optimum is met to the bit."""
    loads = reference.branch_loads(selection.amortized(bits), math.ceil(max(bits) / 2))
    assert max(loads) - min(loads) == reference.smallest_spread(bits)


@given(bits=CANDIDATES, data=st.data())
def test_order_of_the_list_does_not_matter(bits, data):
    shuffled = data.draw(st.permutations(bits))
    assert selection.check_bits(shuffled) == tuple(sorted(bits))
    assert selection.amortized(shuffled) == selection.amortized(bits)
    assert selection.serial(shuffled) == selection.serial(bits)


@given(bits=CANDIDATES)
def test_widths_add_up_to_the_bit_width(bits):
    """A branch carries two bits, a half one a single bit, which is the last of an odd number."""
    chosen = selection.amortized(bits)
    for bit in bits:
        uses = selection.uses_at(chosen, bit)
        assert tuple(use.index for use in uses) == chosen[bit]
        assert sum(use.width for use in uses) * selection.BRANCH_BITS == bit
        assert [use.width for use in uses] == [1] * (bit // 2) + [Fraction(1, 2)] * (bit % 2)


@given(bits=CANDIDATES)
def test_bits_of_uses_invert_the_selection(bits):
    chosen = selection.amortized(bits)
    found = selection.bits_of_uses(chosen)
    assert all(list(at) == sorted(at) for at in found.values())
    assert {(use, bit) for use, at in found.items() for bit in at} == {
        (use, bit) for bit in bits for use in selection.uses_at(chosen, bit)
    }
    assert list(found) == sorted(found, key=lambda use: (use.index, -use.width))


def test_every_selection_uses_one_body_as_a_whole():
    """So a network of one body needs no arithmetic of its own."""
    assert selection.uses_at({2: (0,), 5: (0,)}, 5) == (BranchUse(0),)


def test_whole_numbers_of_any_kind():
    assert selection.check_bits(np.array([4, 2])) == (2, 4)
    assert all(type(bit) is int for bit in selection.check_bits(np.array([4, 2])))


@pytest.mark.parametrize(
    ("bits", "message"),
    [
        ([], r"expected at least one bit-width .* got none"),
        (8, r"expected a list such as \[2, 4, 6, 8\], got 8"),
        (None, r"expected a list .* got None"),
        ("2468", r"expected whole numbers, got '2'"),
        ([2, 4.0], r"expected whole numbers, got 4\.0 in \[2, 4\.0\]"),
        ([True], r"expected whole numbers, got True"),
        ([0, 2], r"expected 2 to 16, got 0"),
        ([2, -4], r"expected 2 to 16, got -4"),
        ([2, 18], r"expected 2 to 16, got 18"),
        ([2, 4, 2], r"expected each bit-width once, got \[2, 4, 2\]"),
    ],
)
def test_bad_bits(bits, message):
    with pytest.raises(BitWidthError, match=message):
        selection.check_bits(bits)


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ("greedy", r"expected one of \['amortized', 'serial'\] or a mapping, got 'greedy'"),
        ([(0,), (0, 1)], r"expected one entry for each of the bit-widths \[2, 4\]"),
        ({2: [0]}, r"expected one entry for each of the bit-widths \[2, 4\], got \{2: \[0\]\}"),
        ({2: [0], 4: [0, 1], 6: [0]}, r"expected one entry for each"),
        ({2: [0], 4: [0, 0]}, r"selection\[4\]: expected 2 distinct branches, got \(0, 0\)"),
        ({2: [0], 4: [1]}, r"selection\[4\]: expected 2 distinct branches, got \(1,\)"),
        ({2: [], 4: [0, 1]}, r"selection\[2\]: expected 1 distinct branches, got \(\)"),
        ({2: [2], 4: [0, 1]}, r"selection\[2\]: expected branch indices 0 to 1, got \(2,\)"),
        ({2: [-1], 4: [0, 1]}, r"selection\[2\]: expected branch indices 0 to 1, got \(-1,\)"),
        ({2: 0, 4: [0, 1]}, r"selection\[2\]: expected a list of branch indices, got 0"),
    ],
)
def test_bad_selection(chosen, message):
    with pytest.raises(SelectionError, match=message):
        selection.resolve_selection(chosen, [2, 4])


def test_errors_are_value_errors():
    assert issubclass(SelectionError, MultiQuantError)
    assert issubclass(MultiQuantError, ValueError)
