"""Tables of thresholds against trying every integer."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from brevitas_multiquant.export.finn.thresholds import directions, threshold_table


def codes_of_table(table, first_code, integers):
    return first_code + (integers[:, :, None] >= table[None]).sum(-1)


@given(
    st.integers(-300, 100),
    st.integers(1, 400),
    st.integers(1, 6),
    st.booleans(),
    st.integers(0, 10_000),
)
def test_the_table_gives_the_code_of_every_integer(lowest, width, bits, signed, seed):
    generator = torch.Generator().manual_seed(seed)
    highest, channels = lowest + width, 3
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    scale = torch.rand(channels, generator=generator)
    shift = torch.randn(channels, generator=generator) * 5

    def codes(integers):
        return (integers * scale + shift).round().clamp(low, high)  # half to even, as torch does

    table = threshold_table(codes, lowest, highest, channels, (low, high))
    assert table.shape == (channels, high - low)
    assert (table.diff(dim=1) >= 0).all()
    assert lowest <= table.min() and table.max() <= highest + 1
    every = torch.arange(lowest, highest + 1.0)[:, None].expand(-1, channels)
    assert torch.equal(codes_of_table(table, low, every), codes(every).long())


def test_directions():
    scale = torch.tensor([2.0, 0.0, -1.0])
    assert directions(lambda a: a * scale, -4, 4, 3).tolist() == [1.0, 1.0, -1.0]
