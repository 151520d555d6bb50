"""Where images come from: the built-in data sets, folders, tars and whatever else timm reads."""

from collections.abc import Sized
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
from PIL import Image, ImageOps
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from timm.data import create_dataset
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset
from torchvision.transforms.v2 import functional as transforms
from tqdm import tqdm

from recipes.data_options import BUILT_IN, DataOptions
from recipes.errors import DatasetError, MissingFileError, OptionError, UnknownDatasetError
from recipes.seeds import derived_seed

READER_PREFIXES = ("torch", "hfds", "hfids", "tfds", "wds")
TRAIN_SPLITS = ("train", "training")
VAL_SPLITS = ("val", "validation", "valid", "test", "eval")
BYTES_PER_MIB = 2**20


@dataclass(frozen=True)
class Images:
    """Decoded images: pixels uint8 (N, 3, H, W), labels int64 (N,) in [0, num_classes)."""

    pixels: Tensor
    labels: Tensor
    num_classes: int
    classes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device | str) -> "Images":
        """The same images on a device."""
        return replace(self, pixels=self.pixels.to(device), labels=self.labels.to(device))


def load_split(options: DataOptions, train: bool) -> Images | Dataset:
    """One split: decoded images where they fit ``cache_limit_mb``, else a data set to stream."""
    if options.dataset == "digits":
        return _take_subset(load_digit_images(train, options.img_size), options, train)
    if options.dataset == "synthetic":
        return _take_subset(synthetic_images(train, options), options, train)
    if options.dataset in BUILT_IN:
        return _from_dataset(_open_cifar(options, train), options, train)
    return _from_dataset(_open_timm(options, train), options, train)


def load_digit_images(train: bool, img_size: int) -> Images:
    """scikit-learn's 1797 handwritten digits of 8x8 pixels, enlarged; a fixed 80/20 split."""
    digits = load_digits()
    split = train_test_split(
        digits.images, digits.target, test_size=0.2, stratify=digits.target, random_state=0
    )
    pixels, labels = (split[0], split[2]) if train else (split[1], split[3])
    grey = torch.from_numpy(pixels).unsqueeze(1) * (255 / digits.images.max())
    large = transforms.resize(grey, [img_size, img_size], antialias=True).round_().to(torch.uint8)
    return Images(large.repeat(1, 3, 1, 1), torch.from_numpy(labels).long(), 10)


def synthetic_images(train: bool, options: DataOptions) -> Images:
    """Random pixels and labels: as many images as ``--subset``, and half of them to validate.

    Nothing can be learned from them; they try a configuration where its data set is not at hand.

    Raises:
        OptionError: the number of images or of classes is not given.
    """
    if options.subset is None or options.num_classes is None:
        raise OptionError("--dataset synthetic: expected --subset N and --num-classes N beside it")
    count = options.subset if train else max(options.subset // 2, 1)
    generator = torch.Generator().manual_seed(derived_seed(options.subset_seed, int(train)))
    shape = (count, 3, options.img_size, options.img_size)
    pixels = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    labels = torch.randint(0, options.num_classes, (count,), generator=generator)
    return Images(pixels, labels, options.num_classes)


def _subset_indices(count: int, options: DataOptions) -> Tensor:
    order = torch.randperm(count, generator=torch.Generator().manual_seed(options.subset_seed))
    return order[: options.subset]


def _take_subset(images: Images, options: DataOptions, train: bool) -> Images:
    if not train or options.subset is None:
        return images
    chosen = _subset_indices(len(images.labels), options)
    return replace(images, pixels=images.pixels[chosen], labels=images.labels[chosen])


def _open_cifar(options: DataOptions, train: bool) -> Dataset:
    name = options.dataset.upper()
    root = _require_data_dir(options)
    try:
        reader = getattr(torchvision.datasets, name)
        return reader(root, train=train, download=options.dataset_download)
    except RuntimeError as error:
        raise MissingFileError(
            f"expected {name} of torchvision below {root}, found no complete copy ({error}): "
            "correct --data-dir or add --dataset-download"
        ) from None


def _open_timm(options: DataOptions, train: bool) -> Dataset:
    prefix, separator, _ = options.dataset.partition("/")
    if options.dataset and not (separator and prefix in READER_PREFIXES):
        raise UnknownDatasetError(
            f"--dataset: expected one of {sorted(BUILT_IN)}, synthetic, '' for the folder or tars "
            f"in --data-dir, or a name that starts with {[p + '/' for p in READER_PREFIXES]}, "
            f"got {options.dataset!r}"
        )
    split = options.train_split if train else options.val_split
    root = _find_tar(_require_data_dir(options), split, train) if not options.dataset else None
    try:
        return create_dataset(
            options.dataset,
            root=root or options.data_dir,
            split=split,
            is_training=train,
            download=options.dataset_download,
            batch_size=options.batch_size,
            seed=options.seed,
        )
    except (AssertionError, ImportError, OSError, RuntimeError) as error:
        raise DatasetError(
            f"timm cannot read --dataset {options.dataset!r}, split {split!r}, from --data-dir "
            f"{options.data_dir}: {error}"
        ) from error


def _require_data_dir(options: DataOptions) -> str:
    if options.data_dir is None:
        raise MissingFileError(
            f"--data-dir: expected the folder of --dataset {options.dataset!r}, got none"
        )
    if not Path(options.data_dir).exists() and not options.dataset_download:
        raise MissingFileError(
            f"--data-dir: expected an existing folder or tar, got {options.data_dir}"
        )
    return options.data_dir


def _find_tar(data_dir: str, split: str, train: bool) -> str:
    """``data_dir/SPLIT.tar`` where there is one, or ``data_dir`` itself."""
    names = TRAIN_SPLITS if train else VAL_SPLITS
    for name in (split, *(names if split in names else ())):
        if (tar := Path(data_dir) / f"{name}.tar").is_file():
            return str(tar)
    return data_dir


def _from_dataset(dataset: Dataset, options: DataOptions, train: bool) -> Images | Dataset:
    subset = options.subset if train else None
    if isinstance(dataset, IterableDataset):
        fits = False
    else:
        images = count_images(dataset)
        count = images if subset is None else min(subset, images)
        fits = count * 3 * options.img_size**2 <= options.cache_limit_mb * BYTES_PER_MIB
    if fits:
        return decode(dataset, options, train)
    if subset is not None:
        raise DatasetError(
            f"--subset {subset}: expected images that fit --cache-limit-mb "
            f"{options.cache_limit_mb}; raise the limit or lower --img-size {options.img_size}"
        )
    return dataset


def decode(dataset: Dataset, options: DataOptions, train: bool) -> Images:
    """Read every image (of the subset) once, cut and resized to ``img_size``; shows progress.

    Raises:
        DatasetError: an image cannot be read.
    """
    classes = class_names(dataset)
    indices = list(range(count_images(dataset)))
    if train and options.subset is not None:
        indices = _subset_indices(len(indices), options).tolist()
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
