"""Costs between whole bits: exact at them, linear between, differentiable."""

from itertools import product

import pytest
import torch

from brevitas_multiquant.allocation.tabulated import Table, tabulated
from brevitas_multiquant.cost.terms import Term

AXES = [(2, 3, 5), (2, 4), (3,)]


def of(a, b, c):
    return 7 * a * b + 2**b + c, a * a


@pytest.fixture
def table():
    return Table(of, AXES)


def test_whole_bits_are_as_they_were(table):
    for bits in product(*AXES):
        assert table(*bits) == of(*bits)
        tensors = [torch.tensor(float(bit)) for bit in bits]
        assert tuple(one.item() for one in table(*tensors)) == of(*bits)


@pytest.mark.parametrize("bits", [(2.5, 2.5), (4.0, 3.0), (3.2, 4.0)])
def test_between_them_it_is_multilinear(table, bits):
    """By hand, from the four corners of the cell."""
    a, b = bits
    low_a, high_a = (2, 3) if a < 3 else (3, 5)
    at = (a - low_a) / (high_a - low_a), (b - 2) / 2
    expected = [
        sum(
            (at[0] if x == high_a else 1 - at[0])
            * (at[1] if y == 4 else 1 - at[1])
            * of(x, y, 3)[resource]
            for x, y in product((low_a, high_a), (2, 4))
        )
        for resource in range(2)
    ]
    assert table(a, b, 3) == pytest.approx(expected)


def test_gradients_are_those_of_differences(table):
    bits = torch.tensor([3.4, 2.9], dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(table(*bits, 3)[0], bits)
    for index, step in enumerate(torch.eye(2, dtype=torch.float64) * 1e-4):
        more, less = (table(*(bits.detach() + sign * step), 3)[0] for sign in (1, -1))
        assert gradient[index].item() == pytest.approx(((more - less) / 2e-4).item(), rel=1e-8)


def test_a_term_keeps_its_widths():
    term = tabulated(Term(("a", "b"), lambda a, b: a * b, "conv"), {"a": (2, 4), "b": (2, 8)})
    assert (term.widths, term.layer) == (("a", "b"), "conv")
    assert term({"a": 3.0, "b": 5.0}) == (15.0,)  # a product is bilinear


def test_a_constant_is_one():
    assert Table(lambda: 42, [])() == (42.0,)


@pytest.mark.parametrize(
    ("bits", "slope"), [(2.0, 1.0), (3.0, 2.0), (4.0, 4.0), (5.0, 4.0), (6.0, 0)]
)
def test_the_slope_at_a_candidate_is_one_of_its_sides(bits, slope):
    """To the right, at the last one to the left: never both together; none beyond the ends."""
    width = torch.tensor(bits, requires_grad=True)
    (cost,) = Table(lambda b: {2: 0, 3: 1, 4: 3, 5: 7}[b], [(2, 3, 4, 5)])(width)
    cost.backward()
    assert width.grad == slope
