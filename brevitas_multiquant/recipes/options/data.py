"""Which images to read and how: the data options, and what is known of the built-in data sets."""

import argparse
from dataclasses import dataclass, fields

from brevitas_multiquant.core.preprocessing import (
    CIFAR_MEAN,
    CIFAR_STD,
    IMAGENET_MEAN,
    IMAGENET_STD,
)
from brevitas_multiquant.recipes.errors import OptionError
from brevitas_multiquant.recipes.options.option import option
from brevitas_multiquant.recipes.options.types import (
    auto_augment,
    fraction,
    not_negative,
    number,
    positive,
    positive_number,
)

FOLDER = ""
"""The ``--dataset`` that is the folder or tars in ``--data-dir``."""

TRAIN_SPLIT, VAL_SPLIT = "train", "validation"

SOURCE_OPTIONS = ("data_dir", "dataset_download", "train_split", "val_split")
"""Options that say where images come from."""

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


def choose_source(
    own: argparse.Namespace, parsed: argparse.Namespace
) -> tuple[str | None, str | None]:
    """``--dataset`` and ``--data-dir``, each of which may leave the other out.

    A folder alone is read as a folder. What the command line names stands above what a file
    names: a folder above a data set that reads none, and such a data set above a folder.

    Args:
        own: the options of the command line alone.
        parsed: with those of a file below them.

    Returns:
        (None, None) where neither names any data.
    """
    dataset, data_dir = parsed.dataset, parsed.data_dir
    if own.dataset is None and own.data_dir is not None and not reads(dataset, "data_dir"):
        dataset = FOLDER
    elif own.dataset is not None and own.data_dir is None and not reads(dataset, "data_dir"):
        data_dir = None
    elif dataset is None and data_dir is not None:
        dataset = FOLDER
    return dataset, data_dir


@dataclass(frozen=True)
class DataOptions:
    """Which images to read and how."""

    dataset: str = option(
        help="digits, cifar10, cifar100, synthetic, a timm name, or '' for a folder"
    )
    data_dir: str | None = option(
        metavar="DIR", help="folder of the data set: class folders, or SPLIT.tar"
    )
    dataset_download: bool = option(False, help="fetch the data set if it is not there")
    train_split: str = option(TRAIN_SPLIT, metavar="NAME", help="(default train, training)")
    val_split: str = option(VAL_SPLIT, metavar="NAME", help="(default val, validation, test...)")
    num_classes: int | None = option(type=positive, help="default: as many as the data set has")
    img_size: int = option(32, positive, "height and width of the images", metavar="PIXELS")
    mean: list[float] | None = option(
        type=number, nargs=3, metavar="M", help="channel means, pixels in [0, 1]"
    )
    std: list[float] | None = option(
        type=positive_number, nargs=3, metavar="S", help="channel standard deviations"
    )
    hflip: float | None = option(
        type=fraction, metavar="P", help="how often to mirror (default 0.5, digits 0)"
    )
    crop_padding: int | None = option(
        type=not_negative, metavar="PIXELS", help="(default img-size / 8)"
    )
    aa: str | None = option(
        type=auto_augment, metavar="POLICY", help="of timm, as rand-m9-mstd0.5-inc1 or v0"
    )
    reprob: float = option(0.0, fraction, "how often a part is erased", metavar="P")
    remode: str = option("pixel", choices=["pixel", "rand", "const"], help="what it becomes")
    recount: int = option(1, positive, "parts at most", metavar="N")
    subset: int | None = option(
        type=positive, metavar="N", help="train on N images of a fixed permutation"
    )
    subset_seed: int = option(0, not_negative, "of that permutation", metavar="SEED")
    cache_limit_mb: int = option(1024, positive, "keep images in memory up to here, in MB")
    batch_size: int = option(128, positive, "images per step on each process", short="-b")
    workers: int = option(2, not_negative, "loader processes, for images not cached")
    seed: int = option(42, not_negative, "of all that is random")

    def check_source(self) -> None:
        """Check that the data set reads what is given with it.

        Raises:
            OptionError: it would be passed over.
        """
        nobody_gave = {one.name: one.default for one in fields(self)}
        for name in SOURCE_OPTIONS:
            given = getattr(self, name)
            if given != nobody_gave[name] and not reads(self.dataset, name):
                value = "" if given is True else f" {given}"
                raise OptionError(
                    f"--{name.replace('_', '-')}{value}: --dataset "
                    f"{self.dataset or repr(self.dataset)} does not read it: leave one of the two "
                    "out; --data-dir alone is a folder or tars of images"
                )

    @property
    def normalisation(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and standard deviation of the three channels, for pixels in [0, 1]."""
        known = BUILT_IN.get(self.dataset)
        mean = self.mean or (known.mean if known else IMAGENET_MEAN)
        std = self.std or (known.std if known else IMAGENET_STD)
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
