"""What stays on the processor: images to the accelerator's integers, its integers to logits.

Needs numpy alone, and Pillow for image files. ``host.json`` holds the constants. ``python host.py
IMAGE`` classifies an image file by executing ``model.onnx``, which needs qonnx too; with ``--bits``
an accelerator that is switched to that bit-width.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Logarithms of probabilities (N, classes)."""
    shifted = logits - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities (N, classes)."""
    return np.exp(log_softmax(logits))


def sigmoid(logits: np.ndarray) -> np.ndarray:
    """Of each logit, without overflow."""
    return (1 + np.tanh(logits / 2)) / 2


FINISHES = {"softmax": softmax, "log_softmax": log_softmax, "sigmoid": sigmoid}
"""What a network may do with its logits."""


def _covering(image: tuple[int, int], wanted: tuple[int, int], crop: float) -> tuple[int, int]:
    """Width and height that an image is resized to: as torchvision and timm count them."""
    width, height = (int(one / crop + 1e-6) for one in wanted)
    if width * image[1] >= height * image[0]:
        return width, max(height, width * image[1] // image[0])
    return max(width, height * image[0] // image[1]), height


def read_image(path: str | Path, images: dict[str, Any]) -> np.ndarray:
    """An image file as a network was trained on it, (1, C, H, W) in fp32.

    Args:
        path: a file that Pillow reads.
        images: ``mean``, ``std``, ``size``, ``crop`` and ``interpolation``.
    """
    from PIL import Image

    image = Image.open(path).convert("L" if len(images["mean"]) == 1 else "RGB")
    height, width = images["size"]
    resized = _covering(image.size, (width, height), images["crop"])
    if resized != image.size:
        way = Image.Resampling[images["interpolation"].upper()]
        image = image.resize(resized, way)
    left, top = round((resized[0] - width) / 2), round((resized[1] - height) / 2)
    image = image.crop((left, top, left + width, top + height))
    pixels = np.asarray(image, dtype=np.float32).reshape(height, width, -1) / np.float32(255)
    mean, std = (np.array(images[name], dtype=np.float32) for name in ("mean", "std"))
    return ((pixels - mean) / std).transpose(2, 0, 1)[None]


class Host:
    """The processor's side of one bit-width.

    Args:
        constants: contents of ``host.json``.
    """

    def __init__(self, constants: dict[str, Any]) -> None:
        self.input_scale = np.float32(constants["input_scale"])
        self.input_range = constants["input_range"]
        self.output_scale = np.float32(constants["output_scale"])
        self.output_bias = np.array(constants["output_bias"], dtype=np.float32)
        self.output_divisor = np.float32(constants.get("output_divisor", 1))
        self.finish = [FINISHES[name] for name in constants["finish"]]
        self.images = constants.get("images")

    @classmethod
    def load(cls, path: str | Path = "host.json") -> "Host":
        """Of the file that was exported with the model."""
        return cls(json.loads(Path(path).read_text()))

    def read(self, path: str | Path) -> np.ndarray:
        """An image file as the network was trained on it, (1, C, H, W) in fp32.

        Raises:
            ValueError: ``host.json`` does not say how.
        """
        if self.images is None:
            raise ValueError(
                "host.json: expected mean and std of images, found none; export with "
                "export_finn(..., preprocessing=Preprocessing(mean, std, class_names))"
            )
        return read_image(path, self.images)

    def class_name(self, index: int) -> str:
        """What a class is called; its number where nobody gave names."""
        names = (self.images or {}).get("class_names") or []
        return str(names[index]) if names else str(index)

    def codes(self, images: np.ndarray) -> np.ndarray:
        """Integers (N, H, W, C), int8, of normalised float images (N, C, H, W)."""
        shifted = images.astype(np.float32) + self.input_scale / 2
        codes = np.floor(np.clip(shifted / self.input_scale, *self.input_range))
        return codes.astype(np.int8).transpose(0, 2, 3, 1)

    def logits(self, integers: np.ndarray) -> np.ndarray:
        """Logits (N, classes) of the accelerator's output, of any shape with N in front.

        Those of a map (N, H, W, classes) are (N, classes, H, W).
        """
        classes = self.output_bias.size
        is_map = integers.ndim == 4 and integers.shape[-1] == classes < integers[0].size
        shape = integers.shape if is_map else (len(integers), -1)
        codes = integers.reshape(shape).astype(np.float32)
        logits = codes * self.output_scale / self.output_divisor + self.output_bias
        logits = logits.transpose(0, 3, 1, 2) if is_map else logits
        for function in self.finish:
            logits = function(logits)
        return logits


def setting_name(bits: int | str) -> str:
    """What files of a bit-width are called, as ``4b``; of an assignment, by its name."""
    return str(bits) if "b" in str(bits) else f"{bits}b"


def execute(
    codes: np.ndarray, folder: str | Path = ".", bits: int | str | None = None
) -> np.ndarray:
    """The integers of ``model.onnx`` for codes (N, H, W, C), by qonnx.

    Args:
        codes: of `Host.codes`.
        folder: of the exported project.
        bits: of an accelerator for several bit-widths, or the name of an assignment; default: the
            one that it was built for.

    Raises:
        ValueError: no tables of that bit-width.
    """
    import onnx
    from qonnx.core.modelwrapper import ModelWrapper
    from qonnx.core.onnx_exec import execute_onnx

    model = ModelWrapper(str(Path(folder) / "model.onnx"))
    onnx.IR_VERSION = model.model.ir_version  # qonnx makes models of single nodes
    if bits is not None:
        tables = Path(folder) / "tables" / f"{setting_name(bits)}.npz"
        if not tables.exists():
            raise ValueError(_no_such_setting(folder, bits))
        for name, table in np.load(tables).items():
            model.set_initializer(name, table)
    given, asked = model.graph.input[0].name, model.graph.output[0].name
    images = codes.astype(np.float32)
    return np.concatenate([execute_onnx(model, {given: image[None]})[asked] for image in images])


def classify(
    image: str | Path, folder: str | Path = ".", bits: int | str | None = None
) -> list[tuple[str, float]]:
    """Classes of an image file with their logits, the likeliest first.

    Of a network that gives a map, each class with the share of the positions where its logit is the
    largest.

    Args:
        image: a file that Pillow reads.
        folder: of the exported project.
        bits: as in `execute`.

    Raises:
        ValueError: no such bit-width, or ``host.json`` does not say how images are read.
    """
    constants = "host.json" if bits is None else f"host_{setting_name(bits)}.json"
    if not (Path(folder) / constants).exists():
        raise ValueError(_no_such_setting(folder, bits))
    host = Host.load(Path(folder) / constants)
    (scores,) = host.logits(execute(host.codes(host.read(image)), folder, bits))
    if scores.ndim == 3:
        scores = np.bincount(scores.argmax(0).ravel(), minlength=len(scores)) / scores[0].size
    order = np.argsort(-scores, kind="stable")
    return [(host.class_name(index), float(scores[index])) for index in order]


def _no_such_setting(folder: str | Path, bits: int | str | None) -> str:
    there = sorted(path.stem.removeprefix("host_") for path in Path(folder).glob("host_*.json"))
    one_of = f"one of {there}" if there else "none, since this project has one bit-width alone"
    return f"bits: expected {one_of}, got {bits}"


def main() -> int:
    """Print the likeliest classes of an image file."""
    parser = argparse.ArgumentParser(description="Classify an image file by executing model.onnx.")
    parser.add_argument("image")
    parser.add_argument("--bits", help="of an accelerator for several; or an assignment's name")
    parser.add_argument("--top", type=int, default=5, metavar="N", help="how many classes")
    options = parser.parse_args()
    try:
        found = classify(options.image, Path(__file__).resolve().parent, options.bits)
    except ImportError as error:
        print(f"error: {error}; host.py needs numpy, Pillow and qonnx", file=sys.stderr)
        return 1
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for name, score in found[: options.top]:
        print(f"{score:.6f}\t{name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
