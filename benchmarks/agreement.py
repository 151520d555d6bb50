"""How well a file of integers agrees with torch over the validation images of a trained network.

    python -m benchmarks.agreement zoo:cifar10_resnet8_finn --data-dir FOLDER
    python -m benchmarks.agreement NET.safetensors --dataset digits --images 360

Exports with ``integer=True``, compares on the first images, and prints what ``export.json`` says of
each bit-width: classes that agree, the largest difference of logits, codes that differ. Where fewer
than 99.5 % of the classes agree, `export_onnx` would write no file; here the number counts. Options
beside ``--images`` and ``--processor`` are those of ``brevitas-multiquant evaluate``.
"""

import argparse
import itertools
import json
import tempfile
from pathlib import Path
from unittest.mock import patch

import torch

from brevitas_multiquant import load_packed
from brevitas_multiquant.export import export_onnx
from brevitas_multiquant.export.onnx.integer.processors import PROCESSORS
from brevitas_multiquant.recipes.data.batches import eval_batches
from brevitas_multiquant.recipes.data.shard import Shard
from brevitas_multiquant.recipes.evaluate import as_trained
from brevitas_multiquant.recipes.options.evaluate import parse_evaluate

HEAD = "| bits | images | same class | largest difference of logits | of | other codes |"


def main() -> None:
    """Export, compare, print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--processor", choices=PROCESSORS, default="any")
    own, rest = parser.parse_known_args()
    asked = parse_evaluate(rest)
    asked.check_named()
    net = load_packed(asked.packed)
    batches = eval_batches(as_trained(asked.data, net), Shard())
    images = torch.cat([images for images, *_ in itertools.islice(batches, own.images)])
    written = patch("brevitas_multiquant.export.onnx.integer.export.SAME_CLASS", 0.0)
    with tempfile.TemporaryDirectory() as folder, written:
        export_onnx(
            net,
            folder,
            bits=asked.bits,
            images=images[: own.images].contiguous(),
            integer=True,
            processor=own.processor,
        )
        report = json.loads((Path(folder) / "export.json").read_text())["bits"]
    print(f"{HEAD}\n|{'---|' * 6}")
    for bits, entry in report.items():
        told = entry["compared"]
        print(
            f"| {bits} | {told['images']} | {told['same_class']} | "
            f"{told['largest_logit_difference']:.3g} | {told['largest_logit']:.3g} | "
            f"{told['other_codes']} of {told['codes']} |"
        )


if __name__ == "__main__":
    main()
