"""Shapes of images: (N, C, H, W), and (N, C, T, H, W) of videos and volumes."""

from typing import Any

EXPECTED = "(1, channels, height, width), or of videos (1, channels, frames, height, width),"
RANKS = (4, 5)
"""Dimensions of a batch of images, and of one of videos."""


def is_image_shape(shape: Any) -> bool:
    """Whether something is a shape of images or of videos: a list or tuple of positive integers.

    Example:
        >>> is_image_shape((1, 3, 32, 32)), is_image_shape([1, 3, 8, 32, 32])
        (True, True)
        >>> is_image_shape((3, 32, 32)), is_image_shape((1, 3, 0, 32))
        (False, False)
    """
    return (
        isinstance(shape, (tuple, list))
        and len(shape) in RANKS
        and all(isinstance(size, int) and not isinstance(size, bool) and size > 0 for size in shape)
    )
