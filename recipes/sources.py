"""Where images come from: the built-in data sets, folders, tars and whatever else timm reads."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torchvision
from PIL import ImageOps
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from timm.data import create_dataset
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset, Subset
from torchvision.transforms.v2 import functional as transforms
from tqdm import tqdm

from recipes.data_options import BUILT_IN, DataOptions
from recipes.errors import DatasetError, MissingFileError, UnknownDatasetError

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

    def to(self, device: torch.device | str) -> "Images":
        """The same images on a device."""
        return Images(self.pixels.to(device), self.labels.to(device), self.num_classes)


def load_split(options: DataOptions, train: bool) -> Images | Dataset:
    """One split: decoded images where they fit ``cache_limit_mb``, else a data set to stream."""
    if options.dataset == "digits":
        return _take_subset(load_digit_images(train, options.img_size), options, train)
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


def _subset_indices(count: int, options: DataOptions) -> Tensor:
    order = torch.randperm(count, generator=torch.Generator().manual_seed(options.subset_seed))
    return order[: options.subset]


def _take_subset(images: Images, options: DataOptions, train: bool) -> Images:
    if not train or options.subset is None:
        return images
    chosen = _subset_indices(len(images.labels), options)
    return Images(images.pixels[chosen], images.labels[chosen], images.num_classes)


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
            f"--dataset: expected one of {sorted(BUILT_IN)}, '' for the folder or tars in "
            f"--data-dir, or a name that starts with {[p + '/' for p in READER_PREFIXES]}, "
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
        count = len(dataset) if subset is None else min(subset, len(dataset))
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
    """Read every image (of the subset) once, cut and resized to ``img_size``; shows progress."""
    num_classes = count_classes(dataset)
    if train and options.subset is not None:
        dataset = Subset(dataset, _subset_indices(len(dataset), options).tolist())
    count, size = len(dataset), options.img_size
    pixels = np.empty((count, size, size, 3), dtype=np.uint8)
    labels = np.empty(count, dtype=np.int64)
    split = "training" if train else "validation"
    for index in tqdm(range(count), desc=f"decode {split} images", mininterval=1, leave=False):
        image, labels[index] = dataset[index]
        pixels[index] = ImageOps.fit(image.convert("RGB"), (size, size))
    stacked = torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()
    return Images(stacked, torch.from_numpy(labels), num_classes or int(labels.max()) + 1)


def count_classes(dataset: Dataset) -> int:
    """The number of classes a timm or torchvision data set declares, 0 where it declares none."""
    for owner in (getattr(dataset, "reader", None), dataset):
        mapping = getattr(owner, "class_name_to_idx", None) or getattr(owner, "class_to_idx", None)
        if mapping:
            return len(mapping)
    return 0
