"""Where images come from: the built-in data sets, folders, tars and whatever else timm reads."""

from pathlib import Path

import torchvision
from timm.data import create_dataset
from torch.utils.data import Dataset, IterableDataset

from recipes.data_options import BUILT_IN, DataOptions
from recipes.errors import DatasetError, MissingFileError, UnknownDatasetError
from recipes.images import Images, load_digit_images, synthetic_images, take_subset
from recipes.reading import count_images, decode

READER_PREFIXES = ("torch", "hfds", "hfids", "tfds", "wds")
TRAIN_SPLITS = ("train", "training")
VAL_SPLITS = ("val", "validation", "valid", "test", "eval")
BYTES_PER_MIB = 2**20


def load_split(options: DataOptions, train: bool) -> Images | Dataset:
    """One split: decoded images where they fit ``cache_limit_mb``, else a data set to stream."""
    if options.dataset == "digits":
        return take_subset(load_digit_images(train, options.img_size), options, train)
    if options.dataset == "synthetic":
        return take_subset(synthetic_images(train, options), options, train)
    if options.dataset in BUILT_IN:
        return _from_dataset(_open_cifar(options, train), options, train)
    return _from_dataset(_open_timm(options, train), options, train)


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
