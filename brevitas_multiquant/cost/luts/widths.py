"""Bits of sums and of thresholds, from the integers that make them."""

import numpy as np
from numpy.typing import ArrayLike

from brevitas_multiquant.core.grids import signed_bits
from brevitas_multiquant.errors import HardwareError


def integer_bits(lowest: int, highest: int) -> int:
    """Bits of the narrowest integers from ``lowest`` to ``highest``, signed only if need be.

    Example:
        >>> integer_bits(0, 15), integer_bits(-1, 15), integer_bits(0, 0)
        (4, 5, 1)
    """
    return signed_bits(lowest, highest) if lowest < 0 else max(highest.bit_length(), 1)


def accumulator_range(weights: ArrayLike, lowest: int, highest: int) -> tuple[int, int]:
    """Smallest and largest sum that these weights can give.

    Follows ``calculate_matvec_accumulator_range``: of each output, the worst activations.

    Args:
        weights: integers (outputs, ...).
        lowest: smallest activation.
        highest: largest activation.

    Raises:
        HardwareError: weights that are no integers.

    Example:
        >>> accumulator_range([[1, -2], [3, 0]], 0, 15)
        (-30, 45)
    """
    integers = np.asarray(weights)
    rows = np.rint(integers).astype(np.int64).reshape(len(integers), -1)
    if not np.array_equal(rows, integers.reshape(rows.shape)):
        raise HardwareError("weights: expected integers, got fractions; give codes, not values")
    above, below = rows.clip(min=0).sum(1), rows.clip(max=0).sum(1)
    smallest = (above * lowest + below * highest).min()
    largest = (above * highest + below * lowest).max()
    return int(smallest), int(largest)


def accumulator_bits(
    weights: ArrayLike, lowest: int, highest: int, whole_bytes: bool = False
) -> int:
    """Bits of the sums that these weights can give.

    Follows ``MVAU.minimize_accumulator_width``.

    Args:
        weights: integers (outputs, ...).
        lowest: smallest activation of the type that comes in.
        highest: largest one.
        whole_bytes: of a network's last layer, whose sums leave the FPGA.

    Example:
        >>> accumulator_bits([[1, -2], [3, 0]], 0, 15)
        7
    """
    bits = integer_bits(*accumulator_range(weights, lowest, highest))
    return -(-bits // 8) * 8 if whole_bytes else bits


def largest_accumulator_bits(
    fan_in: int, weight_bits: int, activation_bits: int, signed_activations: bool = False
) -> int:
    """Bits that sums need if nothing is known of the weights but their type.

    The bound of Colbert et al. (arXiv:2301.13376, eq. 9), as in ``MVAU_hls.lut_estimation``.

    Args:
        fan_in: products in a sum.
        weight_bits: of signed weights.
        activation_bits: of activations.
        signed_activations: whether these can be negative.

    Example:
        >>> largest_accumulator_bits(9, 2, 4)
        10
    """
    largest = fan_in << (weight_bits + activation_bits - 1 - signed_activations)
    return largest.bit_length() + 1


def threshold_bits(lowest: int, highest: int, input_bits: int, signed_input: bool) -> int:
    """Bits of the integers in threshold tables.

    Follows ``Thresholding_rtl.minimize_weight_bit_width``. Sums that are wider than the table are
    saturated to its type, which then has to hold an integer below the lowest threshold. Before
    there are tables, take the range of the sums with one more at its upper end: a threshold that is
    never reached.

    Args:
        lowest: smallest threshold.
        highest: largest threshold.
        input_bits: of what is compared.
        signed_input: whether that can be negative.

    Example:
        >>> threshold_bits(-30, 46, 7, True), threshold_bits(1, 16, 4, False)
        (7, 5)
        >>> threshold_bits(0, 4, 3, False), threshold_bits(0, 4, 8, False)
        (3, 4)
    """
    bits = _table_bits(lowest, highest, signed_input)
    return max(bits, _table_bits(lowest - 1, highest, signed_input)) if bits < input_bits else bits


def _table_bits(lowest: int, highest: int, is_signed: bool) -> int:
    return integer_bits(min(lowest, -1) if is_signed else lowest, highest)
