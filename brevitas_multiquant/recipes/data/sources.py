"""Where images come from: the built-in data sets, folders, tars and whatever else timm reads."""

from collections.abc import Sequence
from pathlib import Path
from tarfile import is_tarfile

import torchvision
from timm.data import create_dataset
from torch.utils.data import Dataset, IterableDataset

from brevitas_multiquant.recipes.data.images import (
    Images,
    load_digit_images,
    synthetic_images,
    take_subset,
)
from brevitas_multiquant.recipes.data.reading import count_images, decode
from brevitas_multiquant.recipes.errors import DatasetError, MissingFileError, UnknownDatasetError
from brevitas_multiquant.recipes.options.data import (
    BUILT_IN,
    FOLDER,
    READ_BY,
    TRAIN_SPLIT,
    VAL_SPLIT,
    DataOptions,
)

READER_PREFIXES = ("torch", "hfds", "hfids", "tfds", "wds")
TRAIN_SPLITS = (TRAIN_SPLIT, "training")
VAL_SPLITS = ("val", VAL_SPLIT, "valid", "eval", "evaluation", "test")
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
        known = [name for name in READ_BY if name]
        raise UnknownDatasetError(
            f"--dataset: expected one of {known}, '' for the folder or tars in --data-dir, or a "
            f"name that starts with {[p + '/' for p in READER_PREFIXES]}, got {options.dataset!r}"
        )
    split = options.train_split if train else options.val_split
    root = split_root(options, train) if options.dataset == FOLDER else options.data_dir
    try:
        return create_dataset(
            options.dataset,
            root=root,
            split=split,
            search_split=options.dataset != FOLDER,  # it is found already
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


def split_root(options: DataOptions, train: bool) -> str:
    """The tar or folder of a split in ``--data-dir``; ``--data-dir`` itself where it has no splits.

    A split that nobody named goes by any of its usual names.

    Raises:
        MissingFileError: no such folder, or no such split in it; names what is there.
        DatasetError: a file that is no tar.
    """
    root = Path(_require_data_dir(options))
    if root.is_file():
        if not is_tarfile(root):
            raise DatasetError(f"--data-dir: expected a folder or a tar of images, got {root}")
        return str(root)
    option, split, usual, names = (
        ("--train-split", options.train_split, TRAIN_SPLIT, TRAIN_SPLITS)
        if train
        else ("--val-split", options.val_split, VAL_SPLIT, VAL_SPLITS)
    )
    tried = (split, *(names if split == usual else ()))
    if found := _first_of(root, tried):
        return str(found)
    if split == usual and not _first_of(root, (*TRAIN_SPLITS, *VAL_SPLITS)):
        return str(root)
    there = sorted(path.name for path in root.iterdir())[:10]
    raise MissingFileError(
        f"{option} {split}: expected {split}/ or {split}.tar in {root}, found {there}"
    )


def _first_of(root: Path, splits: Sequence[str]) -> Path | None:
    """The first tar or folder that there is, tars before folders."""
    named = [name for name in splits if name]
    tars = [tar for name in named if (tar := root / f"{name}.tar").is_file()]
    folders = [folder for name in named if (folder := root / name).is_dir()]
    return next(iter(tars + folders), None)


def check_splits_differ(options: DataOptions) -> None:
    """Check that a network is not validated on the images it was trained on.

    Raises:
        DatasetError: one folder or tar serves both splits.
    """
    if options.dataset != FOLDER:
        return
    train, val = (split_root(options, part) for part in (True, False))
    if train == val:
        raise DatasetError(
            f"--data-dir: expected train/ and val/, or train.tar and val.tar, in "
            f"{options.data_dir}, found images of one split, {train}: a network would be "
            "validated on what it was trained on"
        )


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
