"""Accelerators below the estimates: their RTL simulated, compared with torch.

    .venv-finn/bin/python benchmarks/finn_rtl.py [--runs NAME ...] [--table]

Each run exports one accelerator, for several bit-widths or for one, with `export_finn(...,
rtl=True)`, which fails where an integer differs from torch's. Results go to
benchmarks/results/finn_rtl, and as a table into docs/finn.md. ``--table`` does only that. Minutes
to an hour a run, on one core.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import timm  # noqa: E402
import torch  # noqa: E402
from torch import nn  # noqa: E402

import brevitas_multiquant.core.cifar_networks  # noqa: F401, E402
from benchmarks.finn_matrix import SEED  # noqa: E402
from benchmarks.pages import FINN_PAGE, write_between  # noqa: E402
from brevitas_multiquant import calibrate, multiquantize  # noqa: E402
from brevitas_multiquant.export import export_finn  # noqa: E402
from brevitas_multiquant.export.sample import smooth_images  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results" / "finn_rtl"
RUNS = {  # name -> (size of the images, bit-widths, frames a second, memory)
    "resnet8_32_234": (32, (2, 3, 4), 1000, "finn"),
    "resnet8_32_2468": (32, (2, 4, 6, 8), 1000, "auto"),
    "resnet8_16_24": (16, (2, 4), 4000, "auto"),
    "resnet8_32_8": (32, (2, 4, 6, 8), 1000, "auto"),
}
ALONE = {"resnet8_32_8": 8}
"""Runs of one bit-width, whose tables are fixed."""


def measure(run: str) -> dict[str, Any]:
    """One accelerator, untrained, with norms of random scales of one sign."""
    size, bits, fps, memory = RUNS[run]
    torch.manual_seed(SEED)
    model = timm.create_model("cifar_resnet8", num_classes=10)
    net = multiquantize(model, bits, profile="finn", input_shape=(1, 3, size, size), check=False)
    with torch.no_grad():
        for norm in net.modules():
            if isinstance(norm, nn.BatchNorm2d):
                norm.weight.normal_(1.0, 0.6).abs_()
                norm.bias.normal_(0.0, 0.3)
    calibrate(net, [smooth_images((8, 3, size, size))])
    options = {"target_fps": fps, "memory": memory, "images": smooth_images((1, 3, size, size))}
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        alone = ALONE.get(run)
        asked = {"switchable": True} if alone is None else {"bits": [alone]}
        export_finn(net.eval(), folder, rtl=True, estimate=True, **asked, **options)
        (project,) = Path(folder).iterdir()
        found = json.loads((project / "rtl.json").read_text())
        ports = project / "runtime_weights" / "ports.json"
        count = len(json.loads(ports.read_text())) if ports.exists() else 0
    return {**found, "ports": count, "minutes": (time.perf_counter() - start) / 60}


def table() -> str:
    """Markdown: a line for each run."""
    lines = [
        "| ResNet-8 | bits | memory | ports | largest difference | cycles a frame (estimate) | "
        "latency, cycles (FINN's path) | frames/s | FIFOs, KiB | with FIFOs of 2 |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for run, (size, bits, _, memory) in RUNS.items():
        path = RESULTS / f"{run}.json"
        if path.exists():
            r = json.loads(path.read_text())
            shallow = "stuck" if r["shallow"] is None else f"{r['shallow']:,} cycles"
            which = str(ALONE[run]) if run in ALONE else ", ".join(map(str, bits))
            lines.append(
                f"| {size}x{size} | {which} | `{memory}` | {r['ports']} | "
                f"{max(r['differences'].values()):g} in {len(r['differences'])} settings | "
                f"{r['cycles']:,} ({r['estimated_cycles']:,}) | {r['latency_cycles']:,} "
                f"({r['estimated_latency_cycles']:,}) | {r['frames_per_second']:.0f} | "
                f"{r['fifo_kib']:.1f} | {shallow} |"
            )
    return "\n".join(lines)


def main() -> None:
    """Run what is missing, then write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", nargs="+", default=list(RUNS), choices=list(RUNS))
    parser.add_argument("--table", action="store_true", help="what is there, run nothing")
    options = parser.parse_args()
    RESULTS.mkdir(parents=True, exist_ok=True)
    for run in () if options.table else options.runs:
        path = RESULTS / f"{run}.json"
        if not path.exists():
            path.write_text(json.dumps(measure(run), indent=1) + "\n")
            print(f"{run}: done", flush=True)
    write_between(FINN_PAGE, "finn_rtl", table())
    print(table())


if __name__ == "__main__":
    main()
