"""Augmentation of a whole batch of images, each image by its own random numbers."""

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as transforms


def random_crop(images: Tensor, padding: int, offsets: Tensor) -> Tensor:
    """Shift each image by its own offset, with black where nothing was.

    Args:
        images: (N, C, H, W).
        padding: largest shift in pixels.
        offsets: integers (N, 2) in [0, 2 * padding]: top and left corner; ``padding`` is no shift.
    """
    height, width = images.shape[-2:]
    windows = transforms.pad(images, [padding]).unfold(2, height, 1).unfold(3, width, 1)
    rows = torch.arange(len(images), device=images.device)
    return windows[rows, :, offsets[:, 0], offsets[:, 1]]


def random_flip(images: Tensor, flipped: Tensor) -> Tensor:
    """Mirror the images (N, C, H, W) whose entry in ``flipped`` (N,) is true."""
    return torch.where(flipped[:, None, None, None], images.flip(-1), images)


def normalise(images: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """uint8 (N, 3, H, W) to float32 with about zero mean and unit variance."""
    scaled = transforms.to_dtype(images, torch.float32, scale=True)
    return transforms.normalize(scaled, list(mean), list(std), inplace=True)
