"""How the golden files were made; run once for each version of the format, never again.

``python tests/data/make_golden.py 2`` writes ``packed_v2.safetensors`` and ``packed_v2.json``.

The expected logits hold to the bit on every machine: an impulse image gives sums of one term in
the stem, the body multiplies integers, the last feature map has one pixel, and each row of the
classifier has one weight. No sum of floats depends on its order.
"""

import json
import sys
from pathlib import Path

import torch
from torch import Tensor

from brevitas_multiquant import ModelSource, MultiQuantNet, calibrate, multiquantize, save_packed
from brevitas_multiquant.core.image_task import ImageTask
from brevitas_multiquant.core.preprocessing import Preprocessing

FOLDER = Path(__file__).parent
BITS = (2, 4)
CLASSES = 3
METHODS = {1: "multiquant", 2: "adabits", 3: "multiquant"}
"""Version of the format -> a method whose files are of it."""

TASK = ImageTask(
    Preprocessing((0.5, 0.4, 0.3), (0.25, 0.25, 0.2), ("cat", "dog", "eel"), 0.875, "bilinear"),
    dataset="animals",
    accuracy={2: 50.5, 4: 75.25},
    protocol="top-1, 12 validation images, epoch 1",
    version="0.1.0",
)
"""What the file of version 3 says that its network is for."""


def impulses() -> Tensor:
    """Images (9, 3, 4, 4) with one pixel and channel that is not zero."""
    images = torch.zeros(9, 3, 4, 4)
    for index in range(9):
        images[index, index % 3, 1 + index % 2, 1 + index // 5] = (-1) ** index * 2.0 ** (index - 4)
    return images


def network(version: int) -> MultiQuantNet:
    """ResNet-8 whose norms and ranges have seen data, with a classifier that picks features."""
    torch.manual_seed(20230508)
    source = ModelSource("timm", "cifar_resnet8", {"num_classes": CLASSES})
    net = multiquantize(
        source.build(),
        BITS,
        method=METHODS[version],
        branch_init="shuffle",
        input_shape=(1, 3, 4, 4),
        source=source,
    )
    calibrate(net, [torch.randn(64, 3, 4, 4)])
    with torch.no_grad():
        net.head.fc.weight.zero_()
        for row in range(CLASSES):
            net.head.fc.weight[row, 7 * row + 5] = 1.5 + row
        net.head.fc.bias.copy_(torch.arange(CLASSES) - 0.75)
    net.image_task = TASK if version == 3 else None
    return net.eval()


def logits(net: MultiQuantNet) -> dict[str, list[list[str]]]:
    """Bit-width -> logits of `impulses`, as hexadecimal floats."""
    with torch.no_grad():
        return {
            str(bits): [[value.hex() for value in row] for row in net(impulses()).tolist()]
            for bits in net.bits
            for _ in [net.set_active_bits(bits)]
        }


if __name__ == "__main__":
    made = int(sys.argv[1])
    golden = network(made)
    save_packed(golden, FOLDER / f"packed_v{made}.safetensors")
    written = json.dumps(logits(golden), indent=1)
    (FOLDER / f"packed_v{made}.json").write_text(written + "\n")
