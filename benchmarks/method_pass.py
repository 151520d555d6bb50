"""What a pass of each method costs over a float pass: CPU time, interleaved, medians.

    python -m benchmarks.method_pass cifar_resnet20
    python -m benchmarks.method_pass cifar_resnet20 --compile
    python -m benchmarks.method_pass --table

A pass is a forward and a backward at the largest bit-width, of MultiQuant at 2 bits: one branch.
One thread; both networks run in the same layout, or compiled. Rows are kept in
``benchmarks/results/training_step/methods.json``, and the table stands in RESULTS.md.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import brevitas_multiquant.core.cifar_networks  # noqa: F401  registers the CIFAR networks
from benchmarks.measure import paired_ratio
from benchmarks.pages import RESULTS_PAGE, write_between
from brevitas_multiquant import MultiQuantNet, calibrate, multiquantize
from brevitas_multiquant.core.method import METHODS
from brevitas_multiquant.recipes.run.memory import keep_freed_memory

RESULTS = Path(__file__).parent / "results" / "training_step" / "methods.json"
BITS = (2, 4)
MODES = ("contiguous", "channels last", "compiled")


def passes(network: nn.Module, images: Tensor, labels: Tensor) -> None:
    """One forward and backward; gradients are forgotten, as at the start of a step."""
    network.zero_grad(set_to_none=True)
    F.cross_entropy(network(images), labels).backward()


def ratio(method: str, mode: str, options: argparse.Namespace) -> float:
    """Of one method, over the float network run in the same way."""
    torch.manual_seed(0)
    torch._dynamo.reset()
    shape = (options.batch_size, 3, options.img_size, options.img_size)
    layout = torch.contiguous_format if mode == "contiguous" else torch.channels_last
    model = timm.create_model(options.model, num_classes=10).train().to(memory_format=layout)
    bits = BITS[-1:] if METHODS[method].most_candidates == 1 else BITS
    net: MultiQuantNet = multiquantize(model, bits, method=method, input_shape=shape, check=False)
    images, labels = torch.randn(shape), torch.randint(0, 10, shape[:1])
    images = images.contiguous(memory_format=layout)
    calibrate(net, [images])
    net.train().to(memory_format=layout)
    if mode == "compiled":
        net.compile(dynamic=False)
        model.compile(dynamic=False)
    one_body = len(net.branches) == 1
    with net.at_bits(max(net.bits) if one_body else min(net.bits)):
        return paired_ratio(
            lambda: passes(net, images, labels),
            lambda: passes(model, images, labels),
            options.repeats,
        )


def rows(options: argparse.Namespace) -> Iterator[tuple[str, str, float]]:
    """Method, mode, ratio."""
    for mode in MODES[2:] if options.compile else MODES[:2]:
        for method in METHODS:
            yield method, mode, round(ratio(method, mode, options), 3)


def table(found: dict[str, dict[str, float]]) -> str:
    """Markdown: a line for each method."""
    lines = [f"| method | {' | '.join(MODES)} |", "|---|" + "---|" * len(MODES)]
    for method, of in found.items():
        cells = [f"{of[mode]:.2f}" if mode in of else "" for mode in MODES]
        lines.append(f"| `{method}` | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Measure and keep; write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", default="cifar_resnet20", help="timm model name")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--img-size", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--compile", action="store_true", help="compiled: minutes")
    parser.add_argument("--table", action="store_true", help="of what is there")
    options = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    found = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
    for method, mode, value in () if options.table else rows(options):
        found.setdefault(method, {})[mode] = value
        print(f"{method}, {mode}: {value}", flush=True)
        RESULTS.write_text(json.dumps(found, indent=1) + "\n")
    write_between(RESULTS_PAGE, "method_pass", table(found))


if __name__ == "__main__":
    main()
