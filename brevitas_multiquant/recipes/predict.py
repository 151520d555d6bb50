"""The likeliest classes of image files, at each bit-width: a packed file says all that it takes."""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from brevitas_multiquant import MultiQuantNet, load_packed
from brevitas_multiquant.core.image_task import ImageTask
from brevitas_multiquant.core.preprocessing import Preprocessing
from brevitas_multiquant.core.selection import chosen_bits
from brevitas_multiquant.export.finn.project.host import read_image
from brevitas_multiquant.recipes.errors import DatasetError, OptionError, exit_code
from brevitas_multiquant.recipes.options.demo import DemoOptions
from brevitas_multiquant.recipes.options.predict import PredictOptions, parse_predict

Predicted = dict[int, list[tuple[str, float]]]
"""Bit-width -> classes with their probabilities, the likeliest first."""


def run(options: PredictOptions) -> None:
    """Read the file and the images, and print.

    Raises:
        PackedFileError, SourceError: as `brevitas_multiquant.load_packed`.
        OptionError: the file does not say how images are prepared, and neither do the options.
        BitWidthError: bit-widths that the network does not have.
        ExportError: preprocessing that does not fit the network.
        DatasetError: an image that cannot be read.
    """
    net = load_packed(options.file)
    bits = net.bits if options.bits is None else chosen_bits(options.bits, net.bits, "predict")
    preprocessing = preprocessing_for(net, options)
    constants = preprocessing.constants(*images_and_classes(net, options))
    found = {
        path: predict(net, read(path, constants), bits, preprocessing.class_names)
        for path in options.images
    }
    show = _as_json if options.json else _as_text
    print(show(net.image_task, _first(found, options.top)))


def preprocessing_for(net: MultiQuantNet, options: PredictOptions | DemoOptions) -> Preprocessing:
    """What the file says, with what options say otherwise.

    Raises:
        OptionError: neither knows mean and std.
    """
    names = ("mean", "std", "class_names", "crop", "interpolation")
    given = {
        name: value for name in names if (value := getattr(options.preparing, name)) is not None
    }
    if net.image_task is not None:
        return replace(net.image_task.preprocessing, **given)
    if not {"mean", "std"} <= set(given):
        raise OptionError(
            f"{options.file}: expected a file that says how images are prepared, got one without, "
            "as older releases wrote them: give --mean and --std as in training, for pixels "
            "in [0, 1], and where they were not the default --crop, --interpolation and "
            "--class-names; or set net.image_task and save_packed again"
        )
    return Preprocessing(**given)


def images_and_classes(
    net: MultiQuantNet, options: PredictOptions | DemoOptions
) -> tuple[tuple[int, ...], int]:
    """(1, C, H, W) of the images, and how many logits the network gives for one."""
    if options.preparing.img_size is None and net.input_shape is None:
        raise OptionError(f"{options.file}: it does not tell its image size: give --img-size")
    channels, *size = (net.input_shape or (1, 3))[1:]
    if options.preparing.img_size is not None:
        size = [options.preparing.img_size, options.preparing.img_size]
    shape = (1, channels, *size)
    with torch.no_grad():
        return shape, net(torch.zeros(shape)).shape[1]


def read(path: str, constants: dict[str, Any]) -> Tensor:
    """An image file as the network was trained on it, (1, C, H, W).

    Args:
        path: a file that Pillow reads.
        constants: of `Preprocessing.constants`.

    Raises:
        DatasetError: it is no image.
    """
    try:
        return torch.from_numpy(read_image(path, constants))
    except (OSError, SyntaxError, ValueError) as error:
        raise DatasetError(f"{path}: expected an image, cannot read it: {error}") from error


@torch.no_grad()
def predict(
    net: MultiQuantNet, image: Tensor, bits: Sequence[int], class_names: Sequence[str] = ()
) -> Predicted:
    """All classes of an image (1, C, H, W) by how likely they are, a bit-width at a time.

    Args:
        net: in evaluation.
        image: preprocessed.
        bits: to run at.
        class_names: in the order of the logits; none: classes are numbers.
    """
    found: Predicted = {}
    for bit in bits:
        with net.at_bits(bit):
            best = net(image)[0].softmax(0).sort(descending=True, stable=True)
        pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
        found[bit] = [(class_names[i] if class_names else str(i), share) for i, share in pairs]
    return found


def _first(found: Mapping[str, Predicted], top: int) -> dict[str, Predicted]:
    return {path: {b: some[:top] for b, some in each.items()} for path, each in found.items()}


def _as_text(task: ImageTask | None, found: Mapping[str, Predicted]) -> str:
    lines = []
    for path, by_bits in found.items():
        lines.append(path)
        for bits, classes in by_bits.items():
            shown = ", ".join(f"{name} {100 * share:.1f} %" for name, share in classes)
            lines.append(f"{bits:4} bits: {shown}")
    if task is not None and task.accuracy:
        lines.append(task.measured())
    return "\n".join(lines)


def _as_json(task: ImageTask | None, found: Mapping[str, Predicted]) -> str:
    images: dict[str, Any] = {
        path: {
            str(bits): [{"class": name, "probability": share} for name, share in classes]
            for bits, classes in by_bits.items()
        }
        for path, by_bits in found.items()
    }
    return json.dumps(
        {"image_task": None if task is None else task.to_dict(), "images": images}, indent=2
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the recipe; 0 for success, 2 for wrong usage, 1 for any other named error."""
    return exit_code(lambda: run(parse_predict(argv)))


if __name__ == "__main__":
    sys.exit(main())
