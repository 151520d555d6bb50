"""Images and classes of a timm or torchvision data set."""

from collections.abc import Sized
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch.utils.data import Dataset
from tqdm import tqdm

from brevitas_multiquant.recipes.data.images import Images, subset_indices
from brevitas_multiquant.recipes.errors import DatasetError
from brevitas_multiquant.recipes.options.data import DataOptions


def decode(dataset: Dataset, options: DataOptions, train: bool) -> Images:
    """Read every image (of the subset) once, cut and resized to ``img_size``; shows progress.

    Raises:
        DatasetError: an image cannot be read.
    """
    classes = class_names(dataset)
    indices = list(range(count_images(dataset)))
    if train and options.subset is not None:
        indices = subset_indices(len(indices), options).tolist()
    count, size = len(indices), options.img_size
    pixels = np.empty((count, size, size, 3), dtype=np.uint8)
    labels = np.empty(count, dtype=np.int64)
    split = "training" if train else "validation"
    for row, index in enumerate(
        tqdm(indices, desc=f"decode {split} images", mininterval=1, leave=False)
    ):
        image, labels[row] = read_image(dataset, index)
        pixels[row] = np.asarray(ImageOps.fit(image, (size, size)))
    stacked = torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()
    found = len(classes) or int(labels.max(initial=-1)) + 1
    return Images(stacked, torch.from_numpy(labels), found, classes)


def read_image(dataset: Any, index: int) -> tuple[Image.Image, int]:
    """An image in RGB and its label, past timm's habit of taking the next one if one is damaged.

    Raises:
        DatasetError: it cannot be read; names the file.
    """
    reader = getattr(dataset, "reader", None)
    try:
        if reader is None:
            image, label = dataset[index]
        else:
            source, label = reader[index][:2]
            image = Image.open(source)
        return image.convert("RGB"), label
    except (OSError, SyntaxError, ValueError) as error:
        name = reader.filename(index) if reader is not None else f"image {index}"
        raise DatasetError(f"{name}: expected an image, cannot read it: {error}") from None


def class_names(dataset: object) -> tuple[str, ...]:
    """The classes a timm or torchvision data set declares, by label; empty where it does not."""
    for owner in (getattr(dataset, "reader", None), dataset):
        mapping = getattr(owner, "class_name_to_idx", None) or getattr(owner, "class_to_idx", None)
        if mapping:
            return tuple(str(name) for name in sorted(mapping, key=mapping.get))
    return ()


def count_images(dataset: Dataset) -> int:
    """The length of a data set that can be read in any order."""
    assert isinstance(dataset, Sized)
    return len(dataset)


def count_classes(dataset: object) -> int:
    """The number of classes a data set declares, 0 where it declares none."""
    return len(class_names(dataset))


def check_same_classes(train: tuple[str, ...], val: tuple[str, ...]) -> None:
    """Check that a label means the same class in both splits, where both declare their classes.

    Raises:
        DatasetError: it does not; names the classes that only one split has.
    """
    if train and val and train != val:
        raise DatasetError(
            "expected the same classes in the training and validation images, got "
            f"{_few(set(train) - set(val))} in training only and {_few(set(val) - set(train))} "
            "in validation only; their labels would not mean the same"
        )


def _few(names: set[str]) -> str:
    shown = sorted(names)[:5]
    return f"{shown}{' and more' if len(names) > len(shown) else ''}" if names else "none"
