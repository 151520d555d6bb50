"""Deterministic images to compare executors with."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_SEED = 20230508


def impulse_images(shape: tuple[int, int, int, int], spacing: int) -> Tensor:
    """Isolated impulses, so far apart that a convolution never sees two at once.

    Executors add the terms of a float convolution in different orders and round differently. Here
    each sum has one term that is not zero, a weight times a power of two: exact in every order.

    Args:
        shape: (N, C, H, W).
        spacing: rows and columns between impulses, at least the extent of the kernel.

    Returns:
        Images whose values are 0 or +/- 0.5, 1, 2 or 4.

    Example:
        >>> impulse_images((1, 3, 8, 8), 4).count_nonzero().item()
        4
    """
    generator = torch.Generator().manual_seed(_SEED)
    images = torch.zeros(shape)
    grid = images[:, :, spacing // 2 :: spacing, spacing // 2 :: spacing]
    count, channels, rows, columns = grid.shape
    places = (count, 1, rows, columns)
    channel = torch.randint(channels, places, generator=generator)
    sign = torch.randint(2, places, generator=generator) * 2 - 1
    power = torch.randint(-1, 3, places, generator=generator)
    grid.scatter_(1, channel, sign * 2.0**power)
    return images


def smooth_images(shape: tuple[int, int, int, int]) -> Tensor:
    """Blurred random images with a little noise, mean about 0 and variance about 1.

    Args:
        shape: (N, C, H, W).

    Example:
        >>> smooth_images((2, 3, 16, 16)).shape
        torch.Size([2, 3, 16, 16])
    """
    generator = torch.Generator().manual_seed(_SEED)
    coarse = torch.randn((*shape[:2], 8, 8), generator=generator)
    images = F.interpolate(coarse, size=shape[2:], mode="bicubic", align_corners=False)
    return images + 0.1 * torch.randn(shape, generator=generator)


def stem_extent(stem: nn.Module) -> int:
    """Rows or columns that the largest kernel of a stem spans.

    Example:
        >>> stem_extent(nn.Sequential(nn.Conv2d(3, 8, 7)))
        7
    """
    extents = [
        (size - 1) * dilation + 1
        for module in stem.modules()
        if isinstance(module, nn.Conv2d)
        for size, dilation in zip(module.kernel_size, module.dilation, strict=True)
    ]
    return max(extents, default=1)
