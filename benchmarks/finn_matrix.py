"""Networks times bit-widths through FINN's flow up to its estimates, without Vivado.

    make finn-env
    .venv-finn/bin/python benchmarks/finn_matrix.py [--networks NAME ...] [--bits B ...]

Each pair is exported with `export_finn`: the model is executed and compared with torch after every
build step, and an export that differs or is no single partition fails. What is there already is not
repeated. Results go to benchmarks/results/finn_matrix, one file a pair; ``--table`` prints them.

Networks are untrained: structure, exactness and resources do not depend on training. Their norms
have random scales, signs included, so that thresholds are as irregular as after training.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import brevitas_multiquant.models  # noqa: F401, E402  (registers the CIFAR networks)
from brevitas_multiquant import MultiQuantNet, calibrate, multiquantize  # noqa: E402
from brevitas_multiquant.export import export_finn  # noqa: E402
from brevitas_multiquant.export.sample import smooth_images  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results" / "finn_matrix"
NETWORKS = {  # name -> (height and width of the images, frames a second)
    "cifar_resnet8": (32, 1000),
    "cifar_resnet20": (32, 1000),
    "cifar_vgg11_bn": (32, 500),
    "cifar_mobilenetv1": (32, 500),
    "resnet18": (64, 100),
}
BITS = (2, 4, 6, 8)
SEED = 20230508


def build(name: str, size: int) -> MultiQuantNet:
    """The network in the finn profile, ready to export."""
    torch.manual_seed(SEED)
    model = timm.create_model(name, num_classes=10)
    shape = (1, 3, size, size)
    net = multiquantize(
        model, BITS, profile="finn", branch_init="shuffle", input_shape=shape, check=False
    )
    with torch.no_grad():
        for norm in net.modules():
            if isinstance(norm, nn.BatchNorm2d):
                norm.weight.normal_(1.0, 0.6)
                norm.bias.normal_(0.0, 0.3)
    calibrate(net, [smooth_images((8, *shape[1:]))])
    return net.eval()


def measure(name: str, bits: int) -> dict[str, Any]:
    """Export one pair; what the flow found."""
    size, fps = NETWORKS[name]
    net = build(name, size)
    images = smooth_images((1, 3, size, size))
    with tempfile.TemporaryDirectory() as folder:
        projects = export_finn(net, folder, [bits], target_fps=fps, images=images, estimate=True)
        result = json.loads((projects[bits] / "estimate.json").read_text())
    return {"network": name, "bits": bits, "size": size, "branches": bits // 2, **result}


def table(results: list[dict[str, Any]]) -> str:
    """Markdown: one line a pair."""
    lines = [
        "| network | bits | branches | partitions | outside | float layers | largest difference "
        "| frames/s | latency ms | LUT | BRAM 18K | DSP |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for r in results:
        performance, resources = r["performance"], r["resources"]
        difference = max(step["difference"] for step in r["steps"])
        lines.append(
            f"| {r['network']}, {r['size']}x{r['size']} | {r['bits']} | {r['branches']} | "
            f"{r['partitions']} | {len(r['outside_the_partition'])} | {len(r['float_layers'])} | "
            f"{difference:g} | {performance['estimated_throughput_fps']:.0f} | "
            f"{performance['estimated_latency_ns'] / 1e6:.2f} | {resources['LUT']:.0f} | "
            f"{resources['BRAM_18K']:.0f} | {resources['DSP']:.0f} |"
        )
    return "\n".join(lines)


def load() -> list[dict[str, Any]]:
    """Results so far, in the order of `NETWORKS` and of bit-widths."""
    found = [json.loads(path.read_text()) for path in RESULTS.glob("*.json")]
    order = list(NETWORKS)
    return sorted(found, key=lambda r: (order.index(r["network"]), r["bits"]))


def main() -> None:
    """Run what is missing, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=list(NETWORKS))
    parser.add_argument("--bits", nargs="+", type=int, default=list(BITS), choices=BITS)
    parser.add_argument("--table", action="store_true", help="print what is there, run nothing")
    options = parser.parse_args()
    RESULTS.mkdir(parents=True, exist_ok=True)
    pairs = [(bits, name) for bits in options.bits for name in options.networks]
    for bits, name in [] if options.table else pairs:
        path = RESULTS / f"{name}_{bits}b.json"
        if not path.exists():
            path.write_text(json.dumps(measure(name, bits), indent=1) + "\n")
            print(f"{name} at {bits} bits: done", flush=True)
    print(table(load()))


if __name__ == "__main__":
    main()
