"""Packing small integers into bytes, documented bit by bit.

Layout: value ``i`` of an ``n``-bit array occupies the bits ``i*n .. i*n + n - 1`` of the stream,
and bit ``k`` of the stream is bit ``k % 8`` (from the least significant) of byte ``k // 8``. The
last byte is filled up with zeros. With two bits, byte ``j`` is therefore
``v[4j] | v[4j+1] << 2 | v[4j+2] << 4 | v[4j+3] << 6``; eight values of ``n`` bits take ``n`` bytes.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from brevitas_multiquant.errors import PackedFileError

Array = NDArray[Any]
"""Of any type of numbers."""

MOST_BITS = 16
"""Of a value."""


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
        bits: 1 to 16.

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
    return _pack_eights(flat, bits)


def unpack(packed: NDArray[np.uint8], bits: int, count: int) -> NDArray[np.integer]:
    """The inverse of `pack`: uint8, or uint16 for more than 8 bits.

    Args:
        packed: bytes.
        bits: 1 to 16.
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
    flat = packed.reshape(-1)
    if flat.size and flat[-1] >> (8 - (-count * bits) % 8):
        raise PackedFileError("unpack: expected zeros after the last value, got other bits")
    return _unpack_whole(flat, bits, count) if 8 % bits == 0 else _unpack_eights(flat, bits, count)


def _check_bits(bits: int) -> None:
    if not 1 <= bits <= MOST_BITS:
        raise PackedFileError(f"packing: expected 1 to {MOST_BITS} bits a value, got {bits}")


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


def _pack_eights(flat: Array, bits: int) -> NDArray[np.uint8]:
    """Eight values at a time: they fill whole bytes, each of which takes parts of some of them."""
    values = np.zeros((-(-flat.size // 8), 8), np.uint16)
    values.reshape(-1)[: flat.size] = flat
    packed = np.zeros((len(values), bits), np.uint8)
    for byte, place, shift in _parts(bits):
        value = values[:, place]
        packed[:, byte] |= (value << -shift if shift < 0 else value >> shift).astype(np.uint8)
    return packed.reshape(-1)[: packed_size(flat.size, bits)]


def _unpack_eights(packed: NDArray[np.uint8], bits: int, count: int) -> NDArray[np.integer]:
    eights = np.zeros((-(-count // 8), bits), np.uint8)
    eights.reshape(-1)[: packed.size] = packed
    values = np.zeros((len(eights), 8), np.uint16)
    for byte, place, shift in _parts(bits):
        part = eights[:, byte].astype(np.uint16)
        values[:, place] |= part >> -shift if shift < 0 else part << shift
    values &= np.uint16(2**bits - 1)
    return values.reshape(-1)[:count].astype(np.uint8 if bits <= 8 else np.uint16)


def _parts(bits: int) -> Iterator[tuple[int, int, int]]:
    """(byte, value, bits of the value that stand before the byte), of eight values."""
    for byte in range(bits):
        for place in range(8 * byte // bits, -(-8 * (byte + 1) // bits)):
            yield byte, place, 8 * byte - bits * place
