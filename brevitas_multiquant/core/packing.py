"""Packing small integers into bytes, documented bit by bit.

Layout: value ``i`` of an ``n``-bit array occupies the bits ``i*n .. i*n + n - 1`` of the stream,
and bit ``k`` of the stream is bit ``k % 8`` (from the least significant) of byte ``k // 8``. The
last byte is filled up with zeros. With two bits, byte ``j`` is therefore
``v[4j] | v[4j+1] << 2 | v[4j+2] << 4 | v[4j+3] << 6``.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from brevitas_multiquant.errors import PackedFileError

Array = NDArray[Any]
"""Of any type of numbers."""


def packed_size(count: int, bits: int) -> int:
    """Bytes that ``count`` values of ``bits`` bits take.

    Example:
        >>> packed_size(5, 2)
        2
    """
    return -(-count * bits // 8)


def pack(values: NDArray[np.integer], bits: int) -> NDArray[np.uint8]:
    """Pack unsigned integers, four 2-bit values to a byte.

    Args:
        values: any shape, each in ``[0, 2**bits - 1]``.
        bits: 1 to 8.

    Raises:
        PackedFileError: values that are not integers or do not fit.

    Example:
        >>> pack(np.array([1, 2, 3, 0, 1]), 2)
        array([57,  1], dtype=uint8)
    """
    _check_bits(bits)
    flat = np.asarray(values).reshape(-1)
    if flat.size and flat.dtype.kind not in "iub":
        raise PackedFileError(f"pack: expected integers, got {flat.dtype}")
    if flat.size and (flat.min() < 0 or flat.max() >= 2**bits):
        raise PackedFileError(
            f"pack: expected values from 0 to {2**bits - 1}, got {flat.min()} to {flat.max()}"
        )
    if 8 % bits == 0:
        return _pack_whole(flat.astype(np.uint8), bits)
    stream = (flat[:, None].astype(np.uint8) >> np.arange(bits, dtype=np.uint8)) & 1
    return np.packbits(stream.reshape(-1), bitorder="little")


def unpack(packed: NDArray[np.uint8], bits: int, count: int) -> NDArray[np.uint8]:
    """The inverse of `pack`.

    Args:
        packed: bytes.
        bits: 1 to 8.
        count: how many values were packed.

    Raises:
        PackedFileError: more or fewer bytes than ``count`` values take, or filling that is not 0.

    Example:
        >>> unpack(np.array([57, 1], dtype=np.uint8), 2, 5)
        array([1, 2, 3, 0, 1], dtype=uint8)
    """
    _check_bits(bits)
    if packed.size != packed_size(count, bits):
        raise PackedFileError(
            f"unpack: expected {packed_size(count, bits)} bytes for {count} values of {bits} bits, "
            f"got {packed.size}"
        )
    stream = np.unpackbits(packed.reshape(-1), bitorder="little")
    if stream[count * bits :].any():
        raise PackedFileError("unpack: expected zeros after the last value, got other bits")
    if 8 % bits == 0:
        return _unpack_whole(packed.reshape(-1), bits, count)
    digits = stream[: count * bits].reshape(count, bits)
    return (digits << np.arange(bits, dtype=np.uint8)).sum(axis=1, dtype=np.uint8)


def _check_bits(bits: int) -> None:
    if not 1 <= bits <= 8:
        raise PackedFileError(f"packing: expected 1 to 8 bits a value, got {bits}")


def _pack_whole(flat: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    per_byte = 8 // bits
    padded = np.zeros(packed_size(flat.size, bits) * per_byte, np.uint8)
    padded[: flat.size] = flat
    packed = np.zeros(padded.size // per_byte, np.uint8)
    for place in range(per_byte):
        packed |= padded[place::per_byte] << np.uint8(place * bits)
    return packed


def _unpack_whole(packed: NDArray[np.uint8], bits: int, count: int) -> NDArray[np.uint8]:
    per_byte = 8 // bits
    values = np.empty(packed.size * per_byte, np.uint8)
    for place in range(per_byte):
        values[place::per_byte] = (packed >> np.uint8(place * bits)) & np.uint8(2**bits - 1)
    return values[:count]
