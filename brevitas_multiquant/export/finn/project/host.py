"""What stays on the processor: images to the accelerator's integers, its integers to logits.

Needs numpy alone. ``host.json`` holds the constants.
"""

import json
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


FINISHES = {"softmax": softmax, "log_softmax": log_softmax}
"""What a network may do with its logits."""


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
        self.finish = [FINISHES[name] for name in constants["finish"]]

    @classmethod
    def load(cls, path: str | Path = "host.json") -> "Host":
        """Of the file that was exported with the model."""
        return cls(json.loads(Path(path).read_text()))

    def codes(self, images: np.ndarray) -> np.ndarray:
        """Integers (N, H, W, C), int8, of normalised float images (N, C, H, W)."""
        shifted = images.astype(np.float32) + self.input_scale / 2
        codes = np.floor(np.clip(shifted / self.input_scale, *self.input_range))
        return codes.astype(np.int8).transpose(0, 2, 3, 1)

    def logits(self, integers: np.ndarray) -> np.ndarray:
        """Logits (N, classes) of the accelerator's output, of any shape with N in front."""
        flat = integers.reshape(len(integers), -1).astype(np.float32)
        logits = flat * self.output_scale + self.output_bias
        for function in self.finish:
            logits = function(logits)
        return logits
