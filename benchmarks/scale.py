"""What training on ImageNet takes: measured overhead times published float throughput.

    python -m benchmarks.training_step resnet18 --batch-size 8 --img-size 224
    python -m benchmarks.scale

Hours = epochs * images * branch passes * overhead / (float images a second of all accelerators).
The overhead of a full step over as many float passes in the same layout is read from
results/training_step; the throughput of the float network is published by others (``FLOAT``), or
yours: ``--throughput``.
"""

import argparse
import json
from typing import NamedTuple

from benchmarks.training_step import RESULTS
from brevitas_multiquant.core.selection import BRANCH_BITS

IMAGES = 1_281_167
MODE = "channels_last"
GROWTH = 0.9
"""Of the ideal, where an accelerator count goes beyond what the source measured: an assumption."""


class Float(NamedTuple):
    """Float training of a network in mixed precision, images a second by number of accelerators."""

    network: str
    accelerator: str
    images_a_second: dict[int, float]


FLOAT = (
    # timm, results/benchmark-train-amp-nhwc-pt112-cu113-rtx3090.csv
    Float("resnet18", "RTX 3090", {1: 3482}),
    Float("resnet50", "RTX 3090", {1: 1218}),
    # NVIDIA DeepLearningExamples, PyTorch/Classification/ConvNets/resnet50v1.5/README.md
    Float("resnet50", "A100 80GB", {1: 2470, 8: 16621}),
)


def passes(bits: list[int]) -> float:
    """Branch passes of a step; a half branch, of odd bit-widths, counts half."""
    return sum(bit / BRANCH_BITS for bit in bits)


def throughput(source: Float, accelerators: int) -> float:
    """Images a second; beyond what was measured, ``GROWTH`` of the largest measured rate."""
    if accelerators in source.images_a_second:
        return source.images_a_second[accelerators]
    most = max(source.images_a_second)
    return source.images_a_second[most] * accelerators / most * GROWTH


def hours(epochs: int, bits: list[int], overhead: float, images_a_second: float) -> float:
    """Wall time of a training."""
    return epochs * IMAGES * passes(bits) * overhead / images_a_second / 3600


def measured(network: str, mode: str) -> float | None:
    """A full step over float passes run in the same way, where it was measured at 224 pixels."""
    for path in sorted(RESULTS.glob(f"{network}_b*_224px.json")):
        ratios = json.loads(path.read_text())["modes"].get(mode, {})
        if "full step" in ratios:
            return float(ratios["full step"] / ratios["float / plain float"])
    return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=90)
    parser.add_argument("--accelerators", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--throughput", type=float, help="float images a second of one accelerator")
    options = parser.parse_args()
    counts = " | ".join(f"on {count}" for count in options.accelerators)
    print(f"| network | bits | branch passes | overhead | accelerator | {counts} |")
    print("|---" * (5 + len(options.accelerators)) + "|")
    for source in FLOAT:
        overhead = measured(source.network, MODE)
        if overhead is None:
            print(f"{source.network}: no measurement; run benchmarks.training_step at 224 pixels")
            continue
        if options.throughput:
            source = Float(source.network, "yours", {1: options.throughput})
        for bits in ([2, 4, 6, 8], [2, 3, 4]):
            row = [
                hours(options.epochs, bits, overhead, throughput(source, count))
                for count in options.accelerators
            ]
            cells = " | ".join(
                f"{value:.0f} h" if value >= 10 else f"{value:.1f} h" for value in row
            )
            listed = ",".join(map(str, bits))
            print(
                f"| {source.network} | {listed} | {passes(bits):g} | {overhead:.2f} "
                f"| {source.accelerator} | {cells} |"
            )


if __name__ == "__main__":
    main()
