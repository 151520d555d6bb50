"""From an image file to what the network was trained on, and from its classes to their names."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from brevitas_multiquant.errors import ExportError

INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "lanczos")
"""Pillow's names of how an image is resized."""

CIFAR_MEAN, CIFAR_STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of each channel of the training images, pixels from 0 to 1."""


@dataclass(frozen=True)
class Preprocessing:
    """What is done with an image file before a network reads it, and what its classes are called.

    A pixel from 0 to 255 becomes ``(pixel / 255 - mean) / std``, in fp32. An image is resized until
    it covers the network's size divided by ``crop``, and its centre is cut out.

    Args:
        mean: of each channel, of pixels from 0 to 1.
        std: of each channel.
        class_names: in the order of the logits; none: classes are numbers.
        crop: share of the resized image that is kept, from above 0 to 1.
        interpolation: of `INTERPOLATIONS`.

    Raises:
        ExportError: a value outside its range.

    Example:
        >>> Preprocessing([0.5] * 3, [0.25] * 3, ["cat", "dog"]).crop
        1.0
    """

    mean: Sequence[float]
    std: Sequence[float]
    class_names: Sequence[str] = ()
    crop: float = 1.0
    interpolation: str = "bicubic"

    def __post_init__(self) -> None:
        if len(self.mean) != len(self.std) or not all(one > 0 for one in self.std):
            self._refuse("mean and std", "a positive std for each mean", (self.mean, self.std))
        if not 0 < self.crop <= 1:
            self._refuse("crop", "a share from above 0 to 1", self.crop)
        if self.interpolation not in INTERPOLATIONS:
            self._refuse("interpolation", f"one of {INTERPOLATIONS}", self.interpolation)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "mean": list(map(float, self.mean)),
            "std": list(map(float, self.std)),
            "crop": self.crop,
            "interpolation": self.interpolation,
            "class_names": list(map(str, self.class_names)),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Preprocessing":
        """The inverse of `to_dict`.

        Raises:
            ExportError: a value outside its range.
            KeyError, TypeError, ValueError: it is not such a mapping.
        """
        numbers = {key: tuple(map(float, data[key])) for key in ("mean", "std")}
        names = tuple(map(str, data["class_names"]))
        return cls(**{**data, **numbers, "class_names": names})

    def constants(self, shape: Sequence[int], classes: int) -> dict[str, Any]:
        """What ``host.json`` says of it: `to_dict` with the size, checked against a network.

        Args:
            shape: (N, C, H, W) of the network's images.
            classes: number of logits.

        Raises:
            ExportError: other channels than the network's, more than colours, or another number of
                names than of classes.
        """
        channels = shape[1]
        if len(self.mean) != channels or channels not in (1, 3):
            self._refuse("mean and std", f"{channels} each, for grey or colours", self.mean)
        if self.class_names and len(self.class_names) != classes:
            self._refuse("class_names", f"{classes} names", f"{len(self.class_names)} names")
        own = self.to_dict()
        mean, std = own.pop("mean"), own.pop("std")
        return {"mean": mean, "std": std, "size": list(shape[2:]), **own}

    def _refuse(self, name: str, expected: str, got: object) -> None:
        raise ExportError(f"Preprocessing.{name}: expected {expected}, got {got!r}")
