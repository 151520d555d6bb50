"""Which images to read and how: the data options, and what is known of the built-in data sets."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from brevitas_multiquant.core.cifar_networks import CIFAR_MEAN, CIFAR_STD
from brevitas_multiquant.recipes.errors import OptionError

FOLDER = ""
"""The ``--dataset`` that is the folder or tars in ``--data-dir``."""

TRAIN_SPLIT, VAL_SPLIT = "train", "validation"

SOURCE_OPTIONS: Mapping[str, object] = {
    "data_dir": None,
    "dataset_download": False,
    "train_split": TRAIN_SPLIT,
    "val_split": VAL_SPLIT,
}
"""Options that say where images come from, and what they are where nobody gives them."""

READ_BY = {
    "digits": (),
    "synthetic": (),
    "cifar10": ("data_dir", "dataset_download"),
    "cifar100": ("data_dir", "dataset_download"),
    FOLDER: ("data_dir", "train_split", "val_split"),
}
"""Which of them a data set reads; any other data set, of a reader of timm, reads all of them."""


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


def reads(dataset: str | None, option: str) -> bool:
    """Whether a data set reads one of `SOURCE_OPTIONS`.

    Example:
        >>> reads("digits", "data_dir"), reads("cifar10", "data_dir"), reads("wds/x", "val_split")
        (False, True, True)
    """
    return dataset is not None and option in READ_BY.get(dataset, SOURCE_OPTIONS)


def choose_source(own: Any, args: Any) -> tuple[str | None, str | None]:
    """``--dataset`` and ``--data-dir``, each of which may leave the other out.

    A folder alone is read as a folder. What the command line names stands above what a file
    names: a folder above a data set that reads none, and such a data set above a folder.

    Args:
        own: the options of the command line alone.
        args: with those of a file below them.

    Returns:
        (None, None) where neither names any data.
    """
    dataset, data_dir = args.dataset, args.data_dir
    if own.dataset is None and own.data_dir is not None and not reads(dataset, "data_dir"):
        dataset = FOLDER
    elif own.dataset is not None and own.data_dir is None and not reads(dataset, "data_dir"):
        data_dir = None
    elif dataset is None and data_dir is not None:
        dataset = FOLDER
    return dataset, data_dir


def check_source(args: Any) -> None:
    """Check that the data set reads what is given with it.

    Raises:
        OptionError: it would be passed over.
    """
    for option, nobody_gave in SOURCE_OPTIONS.items():
        given = getattr(args, option)
        if given != nobody_gave and not reads(args.dataset, option):
            name = f"--{option.replace('_', '-')}"
            value = "" if given is True else f" {given}"
            raise OptionError(
                f"{name}{value}: --dataset {args.dataset or repr(args.dataset)} does not read it: "
                "leave one of the two out; --data-dir alone is a folder or tars of images"
            )


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
    num_classes: int | None
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
