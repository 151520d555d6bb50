"""Which images to read and how: the data options, and what is known of the built-in data sets."""

from dataclasses import dataclass, fields
from typing import Any

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from brevitas_multiquant.models import CIFAR_MEAN, CIFAR_STD


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
