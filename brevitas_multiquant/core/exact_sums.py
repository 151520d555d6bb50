"""Which sums of integers fp32 holds exactly, whatever the order in which it adds them."""

FP32_INTEGERS = 2**24
"""fp32 holds every integer up to here."""


def sums_are_exact(taps: int, weight: int, activation: int) -> bool:
    """Whether each sum of products, and each part of it, is an integer that fp32 holds.

    Args:
        taps: products that are added to one output.
        weight: largest magnitude of a weight.
        activation: largest activation.

    Example:
        >>> sums_are_exact(512 * 3 * 3, 3, 255), sums_are_exact(512 * 7 * 7, 3, 255)
        (True, False)
    """
    return taps * weight * activation < FP32_INTEGERS
