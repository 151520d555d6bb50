"""What packing, loading and exporting a network take: wall and CPU time, medians, one thread.

``python benchmarks/packed_files.py resnet50 --repeats 5 --exports 2``

The first save and the first load of a process also import and cache what they need; they are
printed apart.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import timm
import torch

import brevitas_multiquant.core.cifar_networks  # noqa: F401  (registers the CIFAR networks)
from brevitas_multiquant import MultiQuantNet, load_packed, multiquantize, save_packed
from brevitas_multiquant.export import export_qonnx
from brevitas_multiquant.quant.ranges import LearnedRange


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", nargs="?", default="resnet50", help="timm model name")
    parser.add_argument("--bits", type=int, nargs="+", default=[2, 4, 6, 8])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--exports", type=int, default=0, help="verified QONNX exports of all bits")
    options = parser.parse_args()
    torch.set_num_threads(1)
    net = multiquantize(timm.create_model(options.model), options.bits, check=False)
    mark_ranges_as_set(net)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "net.safetensors"
        report("save", options.repeats, lambda: save_packed(net, path))
        print(f"{options.model} at {options.bits}: {path.stat().st_size / 1e6:.1f} MB")
        report("load", options.repeats, lambda: load_packed(path))
        for _ in range(options.exports):  # each is a first one: a process exports a network once
            report("export", 0, lambda: export_qonnx(net, Path(folder) / "qonnx"))


def mark_ranges_as_set(net: MultiQuantNet) -> None:
    """Storing needs ranges; their values do not matter to time."""
    for module in net.modules():
        if isinstance(module, LearnedRange):
            module.observed.fill_(1)


def report(name: str, repeats: int, work: Callable[[], object]) -> None:
    walls, cpus = [], []
    for _ in range(repeats + 1):
        wall, cpu = time.perf_counter(), time.process_time()
        work()
        walls.append(time.perf_counter() - wall)
        cpus.append(time.process_time() - cpu)
    line = f"{name}: first {walls[0]:.2f} s (CPU {cpus[0]:.2f} s)"
    if repeats:
        line += (
            f", then median {statistics.median(walls[1:]):.2f} s "
            f"(CPU {statistics.median(cpus[1:]):.2f} s)"
        )
    print(line, flush=True)


if __name__ == "__main__":
    main()
