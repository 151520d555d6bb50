"""Tables of thresholds over sums that fp32 does not hold: they end, and no integer is wrong."""

from itertools import pairwise

import pytest
import torch

from brevitas_multiquant.errors import ExportError
from brevitas_multiquant.export.finn.model import _Emitter
from brevitas_multiquant.export.finn.thresholds import directions, fp32_table, threshold_table

W8A8 = 128 * 255 * 4608  # 512 input channels, a 3x3 kernel: 150 million
CHANNELS = 3


def staircase(scale, shift, low, high):
    """What torch makes of an fp32 sum: a factor, a summand, rounding half to even."""
    return lambda sums: (sums * scale + shift).round().clamp(low, high)


def neighbourhoods(table, lowest, highest):
    """Every integer within 70 of an entry, and both ends: fp32 steps by 16 there."""
    offsets = torch.arange(-70, 71)
    near = (table.long().flatten()[:, None] + offsets).flatten()
    ends = torch.tensor([lowest, highest])
    return torch.cat([near, ends]).clamp(lowest, highest).unique()


def codes_of_table(table, first_code, integers):
    return first_code + (integers[:, None, None] >= table.long()[None]).sum(-1)


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_the_table_is_right_to_the_integer(bits, signed, seed):
    generator = torch.Generator().manual_seed(seed)
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    scale = (torch.rand(CHANNELS, generator=generator) + 0.2) * (high - low) / W8A8
    codes = staircase(scale, torch.randn(CHANNELS, generator=generator), low, high)
    table = threshold_table(codes, -W8A8, W8A8, CHANNELS, (low, high))
    assert table.dtype == torch.float64 and torch.equal(table, table.round())
    integers = neighbourhoods(table, -W8A8, W8A8)
    expected = codes(integers.float()[:, None].expand(-1, CHANNELS)).long()
    assert torch.equal(codes_of_table(table, low, integers), expected)
    # between two neighbourhoods nothing happens: the code is the same at their ends
    for one, two in pairwise(integers.tolist()):
        if two - one > 1:
            ends = torch.tensor([[one], [two]]).float().expand(2, CHANNELS)
            assert torch.equal(*codes(ends))


def test_every_integer_beyond_the_limit_of_fp32():
    lowest, highest = 2**24 - 3000, 2**24 + 3000
    codes = staircase(torch.tensor([1 / 700, 1 / 333.0]), -(2.0**24) / 700, -8, 7)
    table = threshold_table(codes, lowest, highest, 2, (-8, 7))
    every = torch.arange(lowest, highest + 1)
    expected = codes(every.float()[:, None].expand(-1, 2)).long()
    assert torch.equal(codes_of_table(table, -8, every), expected)


@pytest.mark.parametrize("limit", [2**20, 2**24, 2**31, 2**40])
def test_it_ends_whatever_the_range(limit):
    table = threshold_table(lambda a: (a / limit).ceil().clamp(0, 1), -limit, limit, 1, (0, 1))
    assert table.tolist() == [[1]]
    never = threshold_table(lambda a: a * 0, -limit, limit, 1, (0, 1))
    assert never.tolist() == [[limit + 1]]
    assert directions(lambda a: -a, -limit, limit, 1).tolist() == [-1]


def test_what_fp32_holds_is_given_in_fp32():
    codes = staircase(torch.tensor([1e-4]), 0.0, 0, 3)
    assert threshold_table(codes, -(2**22), 2**22, 1, (0, 3)).dtype == torch.float32


def test_a_file_that_would_round_a_table_is_refused():
    table = torch.tensor([[1.0, 2.0**24 + 1]], dtype=torch.float64)
    with pytest.raises(ExportError, match=r"^body: expected integers that fp32 holds, .* 16777217"):
        _Emitter().constant("body", table, "INT32")


@pytest.mark.parametrize("bits", [2, 8])
@pytest.mark.parametrize("signed", [False, True])
def test_the_table_that_files_hold(bits, signed):
    """In fp32 without a rounding: steps are where the next fp32 number below a sum steps."""
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    scale = (torch.rand(CHANNELS) + 0.2) * (high - low) / W8A8
    codes = staircase(scale, torch.randn(CHANNELS), low, high)
    table = fp32_table(codes, -W8A8, W8A8 + 1, CHANNELS, (low, high))
    assert table.dtype == torch.float32 and table.abs().max() > 2**24
    integers = neighbourhoods(table, -W8A8, W8A8 + 1)
    # the largest fp32 number that is no larger, by a search over its neighbours
    candidates = torch.stack([integers - offset for offset in range(16)])
    held = torch.where(candidates.float().long() == candidates, candidates, -(2**60)).amax(0)
    assert (held < integers).any()
    expected = codes(held.float()[:, None].expand(-1, CHANNELS)).long()
    assert torch.equal(codes_of_table(table, low, integers), expected)


def test_what_fp32_adds_exactly_has_the_same_table():
    codes = staircase(torch.tensor([1e-6, 3e-6]), 0.25, -8, 7)
    both = [make(codes, -(2**23), 2**23, 2, (-8, 7)) for make in (fp32_table, threshold_table)]
    assert torch.equal(*both)


def test_ends_of_the_range_stay_out_of_it():
    """A code that every sum reaches, and one that none does, where the ends are no fp32 numbers."""
    lowest, highest = -(2**25) - 3, 2**25 + 1
    table = fp32_table(lambda a: torch.zeros_like(a), lowest, highest, 1, (-1, 1)).long()
    assert table[0, 0] <= lowest and table[0, 1] > highest
