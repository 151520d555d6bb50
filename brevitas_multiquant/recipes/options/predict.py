"""The options of ``predict``."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, field

from brevitas_multiquant.core.preprocessing import INTERPOLATIONS
from brevitas_multiquant.recipes.options.option import (
    PACKED,
    Parser,
    add_group,
    add_options,
    argument,
    option,
    taken,
)
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

    file: str = argument("FILE", PACKED)
    images: list[str] = argument("IMAGE", "files that Pillow reads", nargs="+")
    preparing: ImageOptions = field(default_factory=ImageOptions)
    bits: list[int] | None = option(type=int, nargs="+", metavar="B", help="default: all")
    top: int = option(3, positive, "classes to print", metavar="N")
    json: bool = option(False, help="print JSON")


def predict_parser() -> argparse.ArgumentParser:
    """All options of ``predict``."""
    parser = Parser("predict", description="The likeliest classes of images at each bit-width.")
    add_options(parser, PredictOptions)
    add_group(parser, "images: what the file does not say, or to say otherwise", ImageOptions)
    return parser


def parse_predict(argv: Sequence[str] | None = None) -> PredictOptions:
    """Parse the options.

    Example:
        >>> options = parse_predict(["best.safetensors", "cat.png"])
        >>> options.images, options.top, options.preparing.img_size
        (['cat.png'], 3, None)
    """
    parsed = predict_parser().parse_args(argv)
    parsed.preparing = taken(ImageOptions, parsed)
    return taken(PredictOptions, parsed)
