"""The options of ``predict``."""

import argparse
from dataclasses import dataclass, field

from brevitas_multiquant.core.preprocessing import INTERPOLATIONS
from brevitas_multiquant.recipes.options.option import add_options, option, taken
from brevitas_multiquant.recipes.options.types import number, positive, positive_number


@dataclass(frozen=True)
class ImageOptions:
    """How images are prepared, where the file does not say, or to say otherwise."""

    mean: list[float] | None = option(
        type=number, nargs="+", metavar="M", help="of each channel, pixels in [0, 1]"
    )
    std: list[float] | None = option(
        type=positive_number, nargs="+", metavar="S", help="standard deviations"
    )
    class_names: list[str] | None = option(nargs="+", metavar="NAME", help="in the order of logits")
    crop: float | None = option(type=positive_number, metavar="SHARE", help="that is kept, to 1")
    interpolation: str | None = option(choices=INTERPOLATIONS, help="of resizing")
    img_size: int | None = option(
        type=positive, metavar="PIXELS", help="height and width (default: as trained)"
    )


@dataclass(frozen=True)
class PredictOptions:
    """What is read and printed."""

    file: str
    images: list[str]
    preparing: ImageOptions = field(default_factory=ImageOptions)
    bits: list[int] | None = option(type=int, nargs="+", metavar="B", help="(default: all)")
    top: int = option(3, positive, "classes to print (default: 3)", metavar="N")
    json: bool = option(False, help="print JSON")

    @classmethod
    def from_parsed(cls, parsed: argparse.Namespace) -> "PredictOptions":
        """The options out of all that were parsed."""
        parsed.preparing = taken(ImageOptions, parsed)
        return taken(cls, parsed)


def add_predict_options(command: argparse.ArgumentParser) -> None:
    """The options of ``predict``.

    Example:
        >>> parser = argparse.ArgumentParser()
        >>> add_predict_options(parser)
        >>> options = PredictOptions.from_parsed(parser.parse_args(["best.safetensors", "cat.png"]))
        >>> options.images, options.top, options.preparing.img_size
        (['cat.png'], 3, None)
    """
    command.add_argument("file", metavar="FILE", help="packed network: best.safetensors of a run")
    command.add_argument("images", nargs="+", metavar="IMAGE", help="files that Pillow reads")
    add_options(command, PredictOptions)
    group = command.add_argument_group("images", "what the file does not say, or to say otherwise")
    add_options(group, ImageOptions)
