"""The options of ``demo``."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, field

from brevitas_multiquant.recipes.options.option import (
    Parser,
    add_group,
    add_options,
    argument,
    option,
    taken,
)
from brevitas_multiquant.recipes.options.predict import ImageOptions
from brevitas_multiquant.recipes.options.types import positive


@dataclass(frozen=True)
class DemoOptions:
    """What is shown, and where."""

    file: str | None = argument(
        "FILE",
        "packed network, or what from_pretrained takes (default: the first of the zoo)",
        nargs="?",
    )
    preparing: ImageOptions = field(default_factory=ImageOptions)
    port: int = option(7860, positive, "of this machine, where the page is", metavar="N")
    no_browser: bool = option(False, help="print the address and open no window")


def demo_parser() -> argparse.ArgumentParser:
    """All options of ``demo``."""
    parser = Parser("demo", description="A page to try a network on: image, bit-width, classes.")
    add_options(parser, DemoOptions)
    add_group(parser, "images: what the file does not say, or to say otherwise", ImageOptions)
    return parser


def parse_demo(argv: Sequence[str] | None = None) -> DemoOptions:
    """Parse the options.

    Example:
        >>> options = parse_demo(["best.safetensors", "--no-browser"])
        >>> options.file, options.port, options.no_browser
        ('best.safetensors', 7860, True)
    """
    parsed = demo_parser().parse_args(argv)
    parsed.preparing = taken(ImageOptions, parsed)
    return taken(DemoOptions, parsed)
