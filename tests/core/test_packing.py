"""Packing: round trip, the documented layout bit by bit, errors."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from brevitas_multiquant.core.packing import pack, packed_size, unpack
from brevitas_multiquant.errors import PackedFileError
from tests import reference

BITS = range(1, 17)


def values_of(bits):
    return st.lists(st.integers(0, 2**bits - 1), max_size=50)


@pytest.mark.parametrize("bits", BITS)
@given(data=st.data())
def test_round_trip_and_layout(bits, data):
    values = data.draw(values_of(bits))
    packed = pack(np.array(values, dtype=np.int64), bits)
    assert packed.dtype == np.uint8
    assert packed.tobytes() == reference.pack_naive(values, bits)
    assert packed.size == packed_size(len(values), bits)
    assert unpack(packed, bits, len(values)).tolist() == values


def test_golden_bytes():
    """One byte of each interesting kind, written out by hand: a released layout never changes."""
    assert pack(np.array([1, 2, 3, 0, 1]), 2).tolist() == [0b00_11_10_01, 0b01]
    assert pack(np.array([5, 3, 1]), 3).tolist() == [0b01_011_101, 0b0]
    assert pack(np.array([5, 3, 7]), 3).tolist() == [0b11_011_101, 0b1]
    assert pack(np.array([10, 3]), 4).tolist() == [0x3A]
    assert pack(np.array([0b100101, 0b110011]), 6).tolist() == [0b11_100101, 0b1100]
    assert pack(np.array([0b1_0000_0001]), 9).tolist() == [1, 1]


@pytest.mark.parametrize("shape", [(0,), (2, 3), (2, 2, 3, 3)])
@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.int64])
def test_any_shape_and_integer_type(shape, dtype):
    values = (np.arange(np.prod(shape)) % 4).reshape(shape).astype(dtype)
    assert np.array_equal(unpack(pack(values, 2), 2, values.size), values.reshape(-1))


@pytest.mark.parametrize(
    ("values", "bits", "message"),
    [
        ([0, 4], 2, r"expected values from 0 to 3, got 0 to 4"),
        ([-1, 1], 2, r"expected values from 0 to 3, got -1 to 1"),
        ([256], 8, r"expected values from 0 to 255, got 256"),
        ([0], 0, r"expected 1 to 16 bits a value, got 0"),
        ([0], 17, r"expected 1 to 16 bits a value, got 17"),
        ([0.5], 2, r"expected integers, got float64"),
    ],
)
def test_bad_values(values, bits, message):
    with pytest.raises(PackedFileError, match=message):
        pack(np.array(values), bits)


@pytest.mark.parametrize(
    ("packed", "bits", "count", "message"),
    [
        ([0, 0], 2, 4, r"expected 1 bytes for 4 values of 2 bits, got 2"),
        ([], 2, 1, r"expected 1 bytes for 1 values of 2 bits, got 0"),
        ([0b100], 2, 1, r"expected zeros after the last value"),
        ([0, 0b1000], 3, 3, r"expected zeros after the last value"),
        ([0], 17, 1, r"expected 1 to 16 bits a value, got 17"),
        ([0, 0x80], 15, 1, r"expected zeros after the last value"),
    ],
)
def test_bad_bytes(packed, bits, count, message):
    with pytest.raises(PackedFileError, match=message):
        unpack(np.array(packed, dtype=np.uint8), bits, count)
