"""What training on ImageNet takes: measured overhead times published float throughput.

    python -m benchmarks.training_step resnet18 --batch-size 8 --img-size 224
    python -m benchmarks.scale
    python -m benchmarks.scale --write

The last one puts the tables into docs/scale.md: every number between two comments there is one of
this script. Hours = epochs * images * branch passes * overhead / (float images a second of all
accelerators). The overhead of a full step over as many float passes in the same layout is read from
results/training_step; the throughput of the float network is published by others (``FLOAT``), or
yours: ``--throughput``.
"""

import argparse
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.training_step import RESULTS
from brevitas_multiquant.core.selection import BRANCH_BITS

DOCS = Path(__file__).resolve().parents[1] / "docs" / "scale.md"
IMAGES = 1_281_167
EPOCHS = 90
ACCELERATORS = (1, 8, 64)
BITS = ([2, 4, 6, 8], [2, 3, 4])
MODES = {"contiguous": "plain", "channels last": "channels_last", "compiled": "compiled"}
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


def measured(network: str) -> list[dict[str, Any]]:
    """What `benchmarks.training_step` left of a network, the smallest images first."""
    found = [json.loads(path.read_text()) for path in RESULTS.glob(f"{network}_b*px.json")]
    return sorted(found, key=lambda result: batch_and_pixels(result)[1])


def batch_and_pixels(result: dict[str, Any]) -> tuple[int, int]:
    """Of a measurement."""
    batch, pixels = re.findall(r"_b(\d+)_(\d+)px", result["name"])[0]
    return int(batch), int(pixels)


def overhead(result: dict[str, Any], mode: str) -> float | None:
    """A full step over float passes run in the same way, where that was measured."""
    ratios = result["modes"].get(mode, {})
    if "full step" not in ratios:
        return None
    return float(ratios["full step"] / ratios["float / plain float"])


def overhead_table() -> Iterator[str]:
    """What quantizers, switched norms and distillation add to a step's passes."""
    yield f"| full step over as many float passes in the same layout, CPU | {' | '.join(MODES)} |"
    yield "|---" * (1 + len(MODES)) + "|"
    for network, title in NETWORKS.items():
        for result in measured(network):
            batch, pixels = batch_and_pixels(result)
            ratios = (overhead(result, mode) for mode in MODES.values())
            cells = " | ".join("" if ratio is None else f"{ratio:.2f}" for ratio in ratios)
            yield f"| {title}, batch {batch}, {pixels} pixels | {cells} |"


NETWORKS = {"cifar_resnet20": "CIFAR ResNet-20", "resnet18": "ResNet-18", "resnet50": "ResNet-50"}
"""timm's name -> what people call it."""


def hours_table(
    epochs: int, accelerators: Sequence[int], own_throughput: float | None = None
) -> Iterator[str]:
    """Hours of a training, a row for each network, accelerator and set of bit-widths.

    Args:
        epochs: of the training.
        accelerators: counts, a column each.
        own_throughput: float images a second of one accelerator, in place of the published ones.
    """
    counts = " | ".join(f"on {count}" for count in accelerators)
    yield f"| network | bits | branch passes | overhead | accelerator | {counts} |"
    yield "|---" * (5 + len(accelerators)) + "|"
    for source in FLOAT:
        ratios = [overhead(one, MODE) for one in measured(source.network)]
        ratio = next(one for one in reversed(ratios) if one is not None)
        if own_throughput:
            source = Float(source.network, "yours", {1: own_throughput})
        for bits in BITS:
            row = [hours(epochs, bits, ratio, throughput(source, count)) for count in accelerators]
            cells = " | ".join(f"{v:.0f} h" if v >= 9.95 else f"{v:.1f} h" for v in row)
            yield (
                f"| {NETWORKS[source.network]} | {', '.join(map(str, bits))} | {passes(bits):g} "
                f"| {ratio:.2f} | {source.accelerator} | {cells} |"
            )


def core_table(epochs: int) -> Iterator[str]:
    """A training on a core of the machine that measured, at 224 pixels."""
    yield f"| one CPU core, bits 2, 4, 6, 8 | seconds an image | {epochs} epochs |"
    yield "|---|---|---|"
    for network, title in NETWORKS.items():
        for result in measured(network):
            if batch_and_pixels(result)[1] == 224:
                seconds = result["milliseconds an image"]["full step"] / 1000
                years = seconds * IMAGES * epochs / (3600 * 24 * 365)
                yield f"| {title} | {seconds:.1f} | {years:.0f} years |"


def tables() -> dict[str, list[str]]:
    """Those of docs/scale.md, by name."""
    return {
        "overhead": list(overhead_table()),
        "hours": list(hours_table(EPOCHS, ACCELERATORS)),
        "one core": list(core_table(EPOCHS)),
    }


def with_tables(text: str) -> str:
    """A page whose tables, between two comments each, are those that were measured.

    Example:
        >>> page = "<!-- table: one core -->old<!-- end -->"
        >>> with_tables(page).count("years |")
        2
    """
    for name, lines in tables().items():
        block = rf"(<!-- table: {name} -->\n?).*?(<!-- end -->)"
        rows = "\n".join(lines)
        text = re.sub(block, lambda m, r=rows: f"{m[1]}{r}\n{m[2]}", text, flags=re.DOTALL)
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument("--accelerators", type=int, nargs="+", default=ACCELERATORS)
    parser.add_argument("--throughput", type=float, help="float images a second of one accelerator")
    parser.add_argument("--write", action="store_true", help="the tables of docs/scale.md, anew")
    options = parser.parse_args()
    if options.write:
        DOCS.write_text(with_tables(DOCS.read_text()))
    print(*hours_table(options.epochs, options.accelerators, options.throughput), sep="\n")


if __name__ == "__main__":
    main()
