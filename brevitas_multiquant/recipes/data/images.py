"""Decoded images in memory, and the built-in sets that need no files."""

from dataclasses import dataclass, replace

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor
from torchvision.transforms.v2 import functional as transforms

from brevitas_multiquant.recipes.data.seeds import derived_seed
from brevitas_multiquant.recipes.errors import OptionError
from brevitas_multiquant.recipes.options.data import DataOptions


@dataclass(frozen=True)
class Images:
    """Decoded images: pixels uint8 (N, 3, H, W), labels int64 (N,) in [0, num_classes).

    ``interpolation`` is how they were resized, as Pillow calls it.
    """

    pixels: Tensor
    labels: Tensor
    num_classes: int
    classes: tuple[str, ...] = ()
    interpolation: str = "bicubic"

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device | str) -> "Images":
        """The same images on a device."""
        return replace(self, pixels=self.pixels.to(device), labels=self.labels.to(device))


def load_digit_images(train: bool, img_size: int) -> Images:
    """scikit-learn's 1797 handwritten digits of 8x8 pixels, enlarged; a fixed 80/20 split."""
    digits = load_digits()
    split = train_test_split(
        digits.images, digits.target, test_size=0.2, stratify=digits.target, random_state=0
    )
    pixels, labels = (split[0], split[2]) if train else (split[1], split[3])
    grey = torch.from_numpy(pixels).unsqueeze(1) * (255 / digits.images.max())
    large = transforms.resize(grey, [img_size, img_size], antialias=True).round_().to(torch.uint8)
    return Images(large.repeat(1, 3, 1, 1), torch.from_numpy(labels).long(), 10, (), "bilinear")


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


def subset_indices(count: int, options: DataOptions) -> Tensor:
    """Which of ``count`` training images ``--subset`` takes."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(options.subset_seed))
    return order[: options.subset]


def take_subset(images: Images, options: DataOptions, train: bool) -> Images:
    """The training images that ``--subset`` takes; all of any others."""
    if not train or options.subset is None:
        return images
    chosen = subset_indices(len(images.labels), options)
    return replace(images, pixels=images.pixels[chosen], labels=images.labels[chosen])
