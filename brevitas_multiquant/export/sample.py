"""Deterministic images to compare executors with."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from brevitas_multiquant.quant.layers import CONVOLUTIONS

_SEED = 20230508
_SMOOTH = {2: "bicubic", 3: "trilinear"}
"""Dimensions of the positions -> how to interpolate between them."""


def impulse_images(shape: tuple[int, ...], spacing: int) -> Tensor:
    """Isolated impulses, so far apart that a convolution never sees two at once.

    Executors add the terms of a float convolution in different orders and round differently. Here
    each sum has one term that is not zero, a weight times a power of two: exact in every order.

    Args:
        shape: (N, C, H, W), or (N, C, T, H, W).
        spacing: frames, rows and columns between impulses, at least the extent of the kernel.

    Returns:
        Images whose values are 0 or +/- 0.5, 1, 2 or 4.

    Example:
        >>> impulse_images((1, 3, 8, 8), 4).count_nonzero().item()
        4
    """
    generator = torch.Generator().manual_seed(_SEED)
    images = torch.zeros(shape)
    places = [slice(min(spacing, size) // 2, None, spacing) for size in shape[2:]]
    grid = images[(slice(None), slice(None), *places)]
    count, channels, *sizes = grid.shape
    chosen = (count, 1, *sizes)
    channel = torch.randint(channels, chosen, generator=generator)
    sign = torch.randint(2, chosen, generator=generator) * 2 - 1
    power = torch.randint(-1, 3, chosen, generator=generator)
    grid.scatter_(1, channel, sign * 2.0**power)
    return images


def smooth_images(shape: tuple[int, ...]) -> Tensor:
    """Blurred random images with a little noise, mean about 0 and variance about 1.

    Args:
        shape: (N, C, H, W), or (N, C, T, H, W).

    Example:
        >>> smooth_images((2, 3, 16, 16)).shape
        torch.Size([2, 3, 16, 16])
    """
    generator = torch.Generator().manual_seed(_SEED)
    count, channels, *sizes = shape
    coarse = torch.randn((count, channels, *(8 for _ in sizes)), generator=generator)
    mode = _SMOOTH[len(sizes)]
    images = F.interpolate(coarse, size=sizes, mode=mode, align_corners=False)
    return images + 0.1 * torch.randn(shape, generator=generator)


def stem_extent(stem: nn.Module) -> int:
    """Frames, rows or columns that the largest kernel of a stem spans.

    Example:
        >>> stem_extent(nn.Sequential(nn.Conv2d(3, 8, 7)))
        7
    """
    extents = [
        (size - 1) * dilation + 1
        for module in stem.modules()
        if isinstance(module, CONVOLUTIONS)
        for size, dilation in zip(module.kernel_size, module.dilation, strict=True)
    ]
    return max(extents, default=1)
