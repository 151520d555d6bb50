"""The options of ``segment``."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass

from brevitas_multiquant.recipes.options.option import Parser, add_options, option, taken
from brevitas_multiquant.recipes.options.types import positive, positive_number


@dataclass(frozen=True)
class SegmentOptions:
    """What is trained, and for how long."""

    model: str = option(
        "cifar_fcn_resnet8", metavar="NAME", help="timm network that classifies each pixel"
    )
    bits: list[int] = option([2, 4, 8], int, "candidate bit-widths", nargs="+", metavar="B")
    output: str = option("output/segment", metavar="DIR", help="folder to write to")
    overwrite: bool = option(False, help="write into a folder that holds something")
    epochs: int = option(8, positive, "times all images are seen", metavar="N")
    images: int = option(2000, positive, "images to train on", metavar="N")
    img_size: int = option(32, positive, "height and width", metavar="PIXELS")
    batch_size: int = option(32, positive, "images a step", short="-b", metavar="N")
    lr: float = option(0.05, positive_number, "peak learning rate of SGD", metavar="LR")
    seed: int = option(0, int, "of weights and images", metavar="N")


def segment_parser() -> argparse.ArgumentParser:
    """All options of ``segment``."""
    parser = Parser(
        "segment", description="Train a small network to tell the shape that each pixel belongs to."
    )
    add_options(parser, SegmentOptions)
    return parser


def parse_segment(argv: Sequence[str] | None = None) -> SegmentOptions:
    """Parse the options.

    Example:
        >>> parse_segment(["--epochs", "2"]).bits
        [2, 4, 8]
    """
    return taken(SegmentOptions, segment_parser().parse_args(argv))
