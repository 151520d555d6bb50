"""A page to try a network on: an image, a slider for the bit-width, classes, accuracy and cost.

Gradio, which serves it, is imported where it is used.
"""

import math
import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torchvision.utils import save_image

from brevitas_multiquant import MultiQuantNet, load_packed
from brevitas_multiquant.core.units import unit_of_bytes
from brevitas_multiquant.errors import MissingPackageError
from brevitas_multiquant.recipes.data.images import load_digit_images
from brevitas_multiquant.recipes.errors import MissingFileError, exit_code
from brevitas_multiquant.recipes.options.demo import DemoOptions, parse_demo
from brevitas_multiquant.recipes.predict import (
    images_and_classes,
    predict,
    preprocessing_for,
    read,
)
from brevitas_multiquant.recipes.results.layers import in_bitops, what_runs
from brevitas_multiquant.recipes.results.page import most_bits, style, templates
from brevitas_multiquant.storage.hub import from_pretrained
from brevitas_multiquant.storage.shipped import PREFIX, shipped_networks

MOST_CLASSES = 5
"""That are shown."""

SMALL_IMAGES = """#image img { width: 100%; height: 100%; object-fit: contain; }"""
"""Fill their frame, however few pixels they have."""


@dataclass(frozen=True)
class Seen:
    """What the page shows.

    Args:
        bits: the bit-width.
        classes: class -> probability, the likeliest first; None without an image.
        html: accuracy and cost, and the bits and the cost of each layer.
    """

    bits: int
    classes: dict[str, float] | None
    html: str


class Demo:
    """A network, and what its page shows at each bit-width.

    Args:
        net: in evaluation.
        options: what the file does not say of images.

    Raises:
        OptionError: nobody says how images are prepared.
        ExportError: preprocessing that does not fit the network.
    """

    def __init__(self, net: MultiQuantNet, options: DemoOptions) -> None:
        preprocessing = preprocessing_for(net, options)
        self.net, self.shape = net, images_and_classes(net, options)[0]
        self.names = preprocessing.class_names
        self.constants = preprocessing.constants(*images_and_classes(net, options))
        self.running = what_runs(net, self.shape)

    @property
    def title(self) -> str:
        """What the network is."""
        task, source = self.net.image_task, self.net.source
        name = source.name if source is not None else "a network"
        return f"{name} on {task.dataset}" if task is not None and task.dataset else name

    def nearest(self, bits: float) -> int:
        """The bit-width of the network that is nearest to a place of the slider."""
        return min(self.net.bits, key=lambda one: (abs(one - bits), one))

    def look(self, image: str | None, bits: float) -> Seen:
        """What the page shows of an image file at a bit-width.

        Raises:
            DatasetError: it is no image.
        """
        at = self.nearest(bits)
        if image is None:
            return Seen(at, None, self.cost_of(at))
        found = predict(self.net, read(image, self.constants), [at], self.names)[at]
        return Seen(at, dict(found), self.cost_of(at))

    def cost_of(self, bits: int) -> str:
        """Accuracy and cost of a bit-width, and its layers, as HTML."""
        cost, task = self.running[bits].cost, self.net.image_task
        scale, unit = in_bitops(cost.bitops)
        of_bytes, size = unit_of_bytes([cost.bytes])
        facts = [
            ("bits", str(bits)),
            (f"{unit} an image", f"{cost.bitops / scale:.4g}"),
            (f"{size}, this bit-width alone", f"{cost.bytes / of_bytes:.1f}"),
            ("branches that run", str(len(cost.branches))),
        ]
        protocol = ""
        if task is not None and bits in task.accuracy:
            facts.insert(1, ("top-1 %", f"{task.accuracy[bits]:.2f}"))
            protocol = task.protocol
        return (
            templates()
            .get_template("demo.html")
            .render(
                style=style(),
                facts=facts,
                at=self.running[bits],
                most_bits=most_bits(self.running),
                protocol=protocol,
            )
        )

    def examples(self, folder: Path) -> list[str]:
        """Image files of the network's data set, written to a folder; none that are not at hand."""
        task = self.net.image_task
        if task is None or task.dataset != "digits":
            return []
        images = load_digit_images(train=False, img_size=self.shape[-1])
        paths = []
        for label in range(images.num_classes):
            first = int((images.labels == label).nonzero()[0])
            paths.append(str(folder / f"{label}.png"))
            save_image(images.pixels[first].to(torch.float32) / 255, paths[-1])
        return paths


def page_of(demo: Demo, examples: Sequence[str] = ()) -> Any:
    """The page, as Gradio's ``Blocks``.

    Raises:
        MissingPackageError: Gradio is not installed.
    """
    gradio = _gradio()
    bits = demo.net.bits
    step = math.gcd(*(one - bits[0] for one in bits[1:])) or 1

    def show(image: str | None, asked: float) -> tuple[dict[str, float] | None, str]:
        seen = demo.look(image, asked)
        return seen.classes, seen.html

    with gradio.Blocks(title=demo.title, analytics_enabled=False) as page:
        gradio.Markdown(f"# {demo.title}\nOne network, {len(bits)} bit-widths.")
        with gradio.Row():
            with gradio.Column(scale=2, min_width=300):
                image = gradio.Image(
                    type="filepath", format="png", label="Image", height=260, elem_id="image"
                )
                slider = gradio.Slider(bits[0], bits[-1], bits[-1], step=step, label="Bit-width")
                if examples:
                    gradio.Examples([[one] for one in examples], image, examples_per_page=10)
                classes = gradio.Label(label="Classes", num_top_classes=MOST_CLASSES)
            with gradio.Column(scale=3, min_width=320):
                shown = gradio.HTML(demo.cost_of(bits[-1]), label="Accuracy and cost")
        gradio.on(
            [image.change, slider.change],
            show,
            [image, slider],
            [classes, shown],
            show_progress="hidden",
        )
    return page


def looks() -> dict[str, Any]:
    """How the page looks: fonts of the reader's own system, so that nothing comes from elsewhere.

    Raises:
        MissingPackageError: Gradio is not installed.
    """
    fonts = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "monospace"]}
    return {"theme": _gradio().themes.Default(**fonts), "css": SMALL_IMAGES}


def _gradio() -> Any:
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    try:
        import gradio
    except ImportError as error:
        raise MissingPackageError(
            "demo: expected the package gradio, which is not installed: "
            'pip install "brevitas-multiquant[demo]"'
        ) from error
    return gradio


def first_shipped() -> str:
    """What is shown where no file is given.

    Raises:
        MissingFileError: no network comes with the package.
    """
    for name in shipped_networks():
        return f"{PREFIX}{name}"
    raise MissingFileError("demo: expected FILE, a packed network: none comes with this version")


def run(options: DemoOptions) -> None:
    """Serve the page until it is stopped.

    Raises:
        MissingPackageError: Gradio is not installed.
        PackedFileError, SourceError, HubError: as of `brevitas_multiquant.load_packed` and
            `brevitas_multiquant.MultiQuantNet.from_pretrained`.
        MissingFileError: as `first_shipped`.
        OptionError, ExportError: as of `Demo`.
    """
    _gradio()
    file = options.file or first_shipped()
    is_file = Path(file).is_file() or file.endswith(".safetensors")
    load = load_packed if is_file else from_pretrained
    demo = Demo(load(file), replace(options, file=file))
    with tempfile.TemporaryDirectory() as folder:
        page = page_of(demo, demo.examples(Path(folder)))
        page.launch(server_port=options.port, inbrowser=not options.no_browser, **looks())


def main(argv: Sequence[str] | None = None) -> int:
    """Serve the page; 0 when it is stopped, 2 for wrong usage, 1 for any other named error."""
    return exit_code(lambda: run(parse_demo(argv)))


if __name__ == "__main__":
    sys.exit(main())
