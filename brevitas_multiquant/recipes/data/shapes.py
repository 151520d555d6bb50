"""Images of shapes with the class of every pixel: drawn, not downloaded."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

CLASSES = ("background", "disc", "square", "triangle")


@dataclass(frozen=True)
class Shapes:
    """Batches of images with one to three shapes each, the same for the same seed.

    Args:
        images: how many.
        size: height and width, in pixels.
        batch_size: images a batch; the last one may be smaller.
        seed: what is drawn is a function of it and of an image's number.
    """

    images: int
    size: int
    batch_size: int
    seed: int = 0

    def __len__(self) -> int:
        return -(-self.images // self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Images (N, 3, H, W), about of mean 0 and variance 1, and classes (N, H, W)."""
        for start in range(0, self.images, self.batch_size):
            numbers = range(start, min(start + self.batch_size, self.images))
            pairs = [draw(self.size, np.random.default_rng((self.seed, n))) for n in numbers]
            images, masks = zip(*pairs, strict=True)
            yield torch.stack(images), torch.stack(masks)


def draw(size: int, random: np.random.Generator) -> tuple[Tensor, Tensor]:
    """One image (3, H, W) with the class of each of its pixels (H, W).

    Shapes have any colour, on a noisy ground of any colour; later ones hide earlier ones.

    Args:
        size: height and width.
        random: what places, sizes and colours are drawn with.

    Example:
        >>> image, mask = draw(32, np.random.default_rng(0))
        >>> image.shape, mask.shape, int(mask.max()) < len(CLASSES)
        (torch.Size([3, 32, 32]), torch.Size([32, 32]), True)
    """
    y, x = np.mgrid[:size, :size].astype(np.float32)
    image = np.broadcast_to(random.uniform(-1, 1, (3, 1, 1)), (3, size, size)).copy()
    mask = np.zeros((size, size), dtype=np.int64)
    for _ in range(random.integers(1, 4)):
        kind = int(random.integers(1, len(CLASSES)))
        inside = _inside(kind, x, y, random.uniform(0.15, 0.3) * size, random, size)
        image[:, inside] = random.uniform(-2, 2, (3, 1))
        mask[inside] = kind
    image += random.normal(0, 0.3, image.shape)
    return torch.from_numpy(image.astype(np.float32)), torch.from_numpy(mask)


def _inside(
    kind: int,
    x: np.ndarray,
    y: np.ndarray,
    radius: float,
    random: np.random.Generator,
    size: int,
) -> np.ndarray:
    """Which pixels a shape covers."""
    right, down = (axis - random.uniform(0.2, 0.8) * size for axis in (x, y))
    if CLASSES[kind] == "disc":
        return right**2 + down**2 <= radius**2
    if CLASSES[kind] == "square":
        return np.maximum(abs(right), abs(down)) <= 0.85 * radius
    return (down <= radius) & (down >= 2 * abs(right) - radius)
