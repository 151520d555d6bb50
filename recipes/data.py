"""Images for the recipes: read once, kept in memory as uint8, augmented a whole batch at a time.

Everything random is a function of (seed, epoch) and is drawn for the whole epoch at once, so that a
resumed run sees the very same batches, and N processes see together what one process with an N
times larger batch would see.
"""

from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
from PIL import ImageOps
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, create_dataset, create_loader
from timm.utils import random_seed
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset, Subset
from torchvision.transforms.v2 import functional as transforms
from tqdm import tqdm

from brevitas_multiquant.errors import MultiQuantError
from brevitas_multiquant.models import CIFAR_MEAN, CIFAR_STD

READER_PREFIXES = ("torch", "hfds", "hfids", "tfds", "wds")
TRAIN_SPLITS = ("train", "training")
VAL_SPLITS = ("val", "validation", "valid", "test", "eval")
BYTES_PER_MIB = 2**20


class UnknownDatasetError(MultiQuantError):
    """A data set name that no reader knows."""


class MissingFileError(MultiQuantError):
    """A file or folder that a recipe needs and that is not there."""


class DatasetError(MultiQuantError):
    """Images or labels that do not fit the options."""


@dataclass(frozen=True)
class DatasetInfo:
    """What is known of a built-in data set: classes, pixel statistics in [0, 1], mirror images."""

    num_classes: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    hflip: float


BUILT_IN = {
    "digits": DatasetInfo(10, (0.3054,) * 3, (0.3237,) * 3, hflip=0.0),
    "cifar10": DatasetInfo(10, CIFAR_MEAN, CIFAR_STD, hflip=0.5),
    "cifar100": DatasetInfo(100, (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762), hflip=0.5),
}


@dataclass(frozen=True)
class DataOptions:
    """The options that say which images to read and how; see ``--help`` for each."""

    dataset: str
    data_dir: str | None
    dataset_download: bool
    train_split: str
    val_split: str
    img_size: int
    mean: list[float] | None
    std: list[float] | None
    hflip: float | None
    crop_padding: int | None
    subset: int | None
    subset_seed: int
    cache_limit_mb: int
    batch_size: int
    workers: int
    seed: int

    @classmethod
    def from_args(cls, args: Any) -> "DataOptions":
        """Take the fields from parsed command-line options."""
        return cls(**{field.name: getattr(args, field.name) for field in fields(cls)})

    @property
    def normalisation(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and standard deviation of the three channels, for pixels in [0, 1]."""
        known = BUILT_IN.get(self.dataset)
        mean = self.mean or (known.mean if known else IMAGENET_DEFAULT_MEAN)
        std = self.std or (known.std if known else IMAGENET_DEFAULT_STD)
        return tuple(mean), tuple(std)

    @property
    def flip_probability(self) -> float:
        """How often a training image is mirrored; never for digits unless asked for."""
        if self.hflip is not None:
            return self.hflip
        known = BUILT_IN.get(self.dataset)
        return known.hflip if known else 0.5

    @property
    def padding(self) -> int:
        """Pixels added on each side before the random crop: an eighth of the image by default."""
        return self.img_size // 8 if self.crop_padding is None else self.crop_padding


@dataclass(frozen=True)
class Shard:
    """Which part of each batch this process computes, and where."""

    rank: int = 0
    world: int = 1
    device: torch.device | str = "cpu"


@dataclass(frozen=True)
class Images:
    """Decoded images: pixels uint8 (N, 3, H, W), labels int64 (N,) in [0, num_classes)."""

    pixels: Tensor
    labels: Tensor
    num_classes: int

    def to(self, device: torch.device | str) -> "Images":
        """The same images on a device."""
        return Images(self.pixels.to(device), self.labels.to(device), self.num_classes)


def epoch_seed(seed: int, epoch: int, rank: int = 0) -> int:
    """An independent seed in [0, 2**32) for each (seed, epoch, rank)."""
    return int(np.random.SeedSequence([seed, epoch, rank]).generate_state(1)[0])


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


class TrainBatches:
    """Shuffled, augmented batches of images in memory; an incomplete last batch is dropped.

    Iterating gives (images float32 (B, 3, H, W), labels int64 (B,)) of this process's shard.

    Raises:
        DatasetError: fewer images than one batch over all processes.
    """

    def __init__(self, images: Images, options: DataOptions, shard: Shard) -> None:
        self.images = images.to(shard.device)
        self.num_classes = images.num_classes
        self.options, self.shard = options, shard
        self.epoch = 0
        if len(self) == 0:
            raise DatasetError(
                f"expected at least {options.batch_size * shard.world} training images, one batch "
                f"on each of {shard.world} processes, got {len(images.labels)}: lower --batch-size"
            )

    def __len__(self) -> int:
        return len(self.images.labels) // (self.options.batch_size * self.shard.world)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order and augmentation the next iteration has."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        generator = torch.Generator().manual_seed(epoch_seed(self.options.seed, self.epoch))
        count, padding = len(self.images.labels), self.options.padding
        order = torch.randperm(count, generator=generator)
        offsets = torch.randint(0, 2 * padding + 1, (count, 2), generator=generator)
        flipped = torch.rand(count, generator=generator) < self.options.flip_probability
        drawn = [values.to(self.shard.device) for values in (order, offsets, flipped)]
        size = self.options.batch_size
        for step in range(len(self)):
            start = (step * self.shard.world + self.shard.rank) * size
            yield self._batch(*(values[start : start + size] for values in drawn))

    def _batch(self, chosen: Tensor, offsets: Tensor, flipped: Tensor) -> tuple[Tensor, Tensor]:
        images = self.images.pixels.index_select(0, chosen)
        images = random_flip(random_crop(images, self.options.padding, offsets), flipped)
        labels = self.images.labels.index_select(0, chosen)
        return normalise(images, *self.options.normalisation), labels


class EvalBatches:
    """All images in memory in their own order, each in the shard of exactly one process."""

    def __init__(self, images: Images, options: DataOptions, shard: Shard) -> None:
        self.images = images.to(shard.device)
        self.num_classes = images.num_classes
        self.options, self.shard = options, shard

    def __len__(self) -> int:
        mine = len(range(self.shard.rank, len(self.images.labels), self.shard.world))
        return -(-mine // self.options.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        mine = slice(self.shard.rank, None, self.shard.world)
        size = self.options.batch_size
        pixels = self.images.pixels[mine].split(size)
        labels = self.images.labels[mine].split(size)
        for images, target in zip(pixels, labels, strict=True):
            yield normalise(images, *self.options.normalisation), target


class StreamedBatches:
    """Images too many for memory, read and augmented by timm's own loader."""

    def __init__(self, dataset: Dataset, options: DataOptions, shard: Shard, train: bool) -> None:
        mean, std = options.normalisation
        self.seed, self.rank = options.seed, shard.rank
        self.num_classes = count_classes(dataset)
        self.loader = create_loader(
            dataset,
            input_size=(3, options.img_size, options.img_size),
            batch_size=options.batch_size,
            is_training=train,
            hflip=options.flip_probability,
            color_jitter=0.0,
            mean=mean,
            std=std,
            num_workers=options.workers,
            distributed=shard.world > 1,
            device=torch.device(shard.device),
            persistent_workers=False,
        )

    def __len__(self) -> int:
        return len(self.loader)

    def set_epoch(self, epoch: int) -> None:
        """Seed the order and the augmentation of the next iteration."""
        random_seed(epoch_seed(self.seed, epoch, self.rank))
        if hasattr(self.loader.sampler, "set_epoch"):
            self.loader.sampler.set_epoch(epoch)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return iter(self.loader)


def count_classes(dataset: Dataset) -> int:
    """The number of classes a timm or torchvision data set declares, 0 where it declares none."""
    for owner in (getattr(dataset, "reader", None), dataset):
        mapping = getattr(owner, "class_name_to_idx", None) or getattr(owner, "class_to_idx", None)
        if mapping:
            return len(mapping)
    return 0


def train_batches(options: DataOptions, shard: Shard) -> TrainBatches | StreamedBatches:
    """The training batches that the options describe.

    Raises:
        UnknownDatasetError, MissingFileError, DatasetError: nothing to read, or it does not fit.
    """
    data = load_split(options, train=True)
    if isinstance(data, Images):
        return TrainBatches(data, options, shard)
    return StreamedBatches(data, options, shard, train=True)


def eval_batches(options: DataOptions, shard: Shard) -> EvalBatches | StreamedBatches:
    """The validation batches that the options describe; raises as `train_batches` does."""
    data = load_split(options, train=False)
    if isinstance(data, Images):
        return EvalBatches(data, options, shard)
    return StreamedBatches(data, options, shard, train=False)


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
