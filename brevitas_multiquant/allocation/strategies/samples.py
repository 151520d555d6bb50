"""The images, and labels, that a strategy looks at."""

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from brevitas_multiquant.core.image_shapes import RANKS
from brevitas_multiquant.errors import CalibrationError
from brevitas_multiquant.training.calibrate import first_images


def read_once(data: Any, most: int) -> Any:
    """Data that can be read again and again: of an iterator the first batches, else itself.

    Args:
        data: what was given for batches.
        most: how many images are needed.

    Example:
        >>> batches = read_once(iter([torch.zeros(4, 3, 8, 8)] * 9), 6)
        >>> len(batches), len(list(batches)) == len(list(batches))
        (2, True)
    """
    if not isinstance(data, Iterator):
        return data
    kept: list[Any] = []
    seen = 0
    for batch in data:
        kept.append(batch)
        (images,) = first_images([batch], 1, "allocate")
        seen += len(images)
        if seen >= most:
            break
    return kept


def images_of(data: Any, strategy: str, most: int) -> list[Tensor]:
    """Batches of the first images.

    Args:
        data: batches of images (N, C, H, W), or tuples that start with one.
        strategy: whose they are, for errors.
        most: how many images.

    Raises:
        CalibrationError: no data, or something else.
    """
    return [images for images, _ in _taken(data, strategy, most)]


def labelled(data: Any, strategy: str, most: int) -> list[tuple[Tensor, Tensor]]:
    """Batches of the first images with their labels.

    Args:
        data: batches (images (N, C, H, W), labels (N,)).
        strategy: whose they are, for errors.
        most: how many images.

    Raises:
        CalibrationError: no data, or data without labels.
    """
    pairs = _taken(data, strategy, most)
    for images, labels in pairs:
        if not isinstance(labels, Tensor) or labels.shape != images.shape[:1]:
            got = tuple(labels.shape) if isinstance(labels, Tensor) else "none"
            raise CalibrationError(
                f"strategy {strategy!r}: expected batches (images, labels) with one class number "
                f"for each image, got {got} labels for {tuple(images.shape)} images: 'sqnr' "
                "needs none"
            )
    return pairs


def _taken(data: Any, strategy: str, most: int) -> list[tuple[Tensor, Any]]:
    caller = f"strategy {strategy!r}"
    if data is None:
        raise CalibrationError(
            f"{caller}: expected data=, batches of about {most} images, got none: 'uniform' and "
            "'mixquant' need none"
        )
    if isinstance(data, Tensor) and data.dim() in RANKS:
        data = [data]
    if not isinstance(data, Iterable):
        raise CalibrationError(f"{caller}: expected batches of images, got {type(data).__name__}")
    taken: list[tuple[Tensor, Any]] = []
    seen = 0
    for batch in data:
        (images,) = first_images([batch], 1, caller)
        second = batch[1] if isinstance(batch, (tuple, list)) and len(batch) > 1 else None
        room = most - seen
        taken.append((images[:room], second[:room] if isinstance(second, Tensor) else second))
        seen += len(taken[-1][0])
        if seen >= most:
            break
    if not taken:
        first_images([], 1, caller)
    return taken


def on(device: torch.device, *tensors: Tensor) -> tuple[Tensor, ...]:
    """Tensors, moved."""
    return tuple(one.to(device) for one in tensors)
