"""What a network is for: the images it was trained on, its classes, and how well it tells them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from brevitas_multiquant.core.preprocessing import Preprocessing
from brevitas_multiquant.errors import ConfigError, MultiQuantError
from brevitas_multiquant.version import __version__


@dataclass(frozen=True)
class ImageTask:
    """What a file says of a network beside how it is built, so that nobody has to be asked.

    The image size is the network's ``input_shape``.

    Args:
        preprocessing: from an image file to what the network reads, and names of the classes.
        dataset: the name of the data set.
        accuracy: bit-width -> top-1 in %, from 0 to 100; empty where it was not measured.
        protocol: what it was measured on, in words: split, number of images, epoch.
        version: of the release that trained the network.

    Raises:
        ConfigError: an accuracy that is no percentage of a bit-width.

    Example:
        >>> task = ImageTask(Preprocessing((0.5,), (0.25,)), "digits", {2: 98.1, 4: 99.0})
        >>> ImageTask.from_dict(task.to_dict()) == task
        True
    """

    preprocessing: Preprocessing
    dataset: str | None = None
    accuracy: Mapping[int, float] = field(default_factory=dict)
    protocol: str = ""
    version: str = __version__

    def __post_init__(self) -> None:
        for bits, top1 in self.accuracy.items():
            if not isinstance(bits, int) or not 0 <= top1 <= 100:
                raise ConfigError(
                    "image task: expected accuracies as bit-width -> top-1 in %, got "
                    f"{dict(self.accuracy)!r}"
                )

    def check(self, bits: Sequence[int]) -> None:
        """Refuse accuracies of bit-widths that a network does not have.

        Raises:
            ConfigError: naming them.
        """
        if unknown := sorted(set(self.accuracy) - set(bits)):
            raise ConfigError(
                f"image task: expected accuracies of some of {list(bits)} bits, got {unknown}"
            )

    def measured(self) -> str:
        """The accuracy at each bit-width with its protocol, in one line; empty: not measured.

        Example:
            >>> ImageTask(Preprocessing((0.5,), (0.25,)), "digits", {2: 98.1}, "top-1").measured()
            'accuracy: 98.10 % at 2 bits (digits: top-1)'
        """
        if not self.accuracy:
            return ""
        parts = ", ".join(f"{top1:.2f} % at {bits}" for bits, top1 in self.accuracy.items())
        return f"accuracy: {parts} bits ({self.dataset}: {self.protocol})"

    def without_accuracy(self) -> "ImageTask":
        """The same of a network that will not be what was measured."""
        return replace(self, accuracy={}, protocol="")

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "preprocessing": self.preprocessing.to_dict(),
            "dataset": self.dataset,
            "accuracy": {str(bits): float(top1) for bits, top1 in self.accuracy.items()},
            "protocol": self.protocol,
            "version": self.version,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "ImageTask":
        """The inverse of `to_dict`.

        Raises:
            ConfigError: it is not such a mapping.
        """
        try:
            read = dict(data)
            preprocessing = Preprocessing.from_dict(read.pop("preprocessing"))
            accuracy = {int(bits): float(top1) for bits, top1 in read.pop("accuracy").items()}
            words = {key: value and str(value) for key, value in read.items()}
            return cls(preprocessing, accuracy=accuracy, **words)
        except (AttributeError, KeyError, TypeError, ValueError, MultiQuantError) as error:
            raise ConfigError(f"image task: expected what to_dict gives, got {data!r}") from error
