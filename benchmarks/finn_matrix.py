"""Networks times bit-widths through FINN's flow up to its estimates, without Vivado.

    make finn-env
    .venv-finn/bin/python benchmarks/finn_matrix.py [--networks NAME ...] [--bits B ...]

Each pair is exported with `export_finn`: the model is executed and compared with torch after every
build step, and an export that differs or is no single partition fails. What is there already is not
repeated. Results go to benchmarks/results/finn_matrix, one file a pair, and as a table into
docs/finn_tables.md; where matplotlib is, a plot is drawn. ``--table`` does only that.

Networks are untrained: structure, exactness and resources do not depend on training. Their norms
have random scales, signs included, so that thresholds are as irregular as after training. The
3-bit rows are of networks built for 2, 3 and 4 bits, with a half branch; the others for 2, 4, 6, 8.
``--half-channels`` adds 3 bits with a half branch of half of the channels, whose round widths fold
better than the widest that costs half of the multiply-accumulates.
``--plain`` adds, for comparison, the same networks with one branch of 8-bit weights and 8-bit
activations (W8A8); with one branch of 2-bit weights and 2-bit activations they are the 2-bit rows.
``--methods`` adds the methods of one body, whose weights follow the bit-width.
"""

import argparse
import copy
import csv
import importlib.util
import json
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import timm
import torch
from brevitas.nn import QuantConv2d, QuantLinear
from torch import nn

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import brevitas_multiquant.core.cifar_networks  # noqa: F401, E402  (registers the CIFAR networks)
from benchmarks.pages import FINN_TABLES, write_between  # noqa: E402
from brevitas_multiquant import (  # noqa: E402
    MultiQuantNet,
    calibrate,
    extract_subnet,
    multiquantize,
)
from brevitas_multiquant.export import export_finn  # noqa: E402
from brevitas_multiquant.export.finn.environment import run_estimate  # noqa: E402
from brevitas_multiquant.export.finn.export import write_project  # noqa: E402
from brevitas_multiquant.export.finn.lower import lower  # noqa: E402
from brevitas_multiquant.export.finn.project_files import Beside, build_config  # noqa: E402
from brevitas_multiquant.export.finn.target import make_target  # noqa: E402
from brevitas_multiquant.export.sample import smooth_images  # noqa: E402
from brevitas_multiquant.nn.subnet import Subnet  # noqa: E402
from brevitas_multiquant.quant.plain import IntWeightConst, OutputScale  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results" / "finn_matrix"
NETWORKS = {  # name -> (height and width of the images, frames a second)
    "cifar_resnet8": (32, 1000),
    "cifar_resnet20": (32, 1000),
    "cifar_vgg11_bn": (32, 500),
    "cifar_mobilenetv1": (32, 500),
    "resnet18": (64, 100),
}
EVEN, WITH_HALF = (2, 4, 6, 8), (2, 3, 4)
CANDIDATES = {2: EVEN, 3: WITH_HALF, 4: EVEN, 6: EVEN, 8: EVEN}
"""Bit-width of a row -> bit-widths of the network that it is taken from."""
METHODS: dict[str, tuple[dict[str, Any], tuple[int, ...]]] = {
    "individual": ({"bits": [8], "method": "individual"}, (8,)),
    "adabits centered": ({"bits": EVEN, "method": "adabits", "grid": "centered"}, EVEN),
    "adabits modified": ({"bits": EVEN, "method": "adabits", "grid": "modified"}, EVEN),
    "double rounding": ({"bits": EVEN, "method": "double_rounding"}, (2, 8)),
}
"""Name -> options of `multiquantize`, and the bit-widths that are exported."""
HALF_CHANNELS = "3, half of the channels"
MARKED = {"W8A8": (8, "x"), HALF_CHANNELS: (3, "v")}
"""Rows beside the lines of the plot: where, and how they are drawn."""
CORRECTED = ROOT / "benchmarks" / "results" / "finn_corrected.csv"
"""What `finn_corrected.py` writes."""
SEED = 20230508


def build(name: str, size: int, **options: Any) -> MultiQuantNet:
    """The network in the finn profile, ready to export."""
    torch.manual_seed(SEED)
    model = timm.create_model(name, num_classes=10)
    shape = (1, 3, size, size)
    net = multiquantize(
        model, profile="finn", branch_init="shuffle", input_shape=shape, check=False, **options
    )
    with torch.no_grad():
        for norm in net.modules():
            if isinstance(norm, nn.BatchNorm2d):
                norm.weight.normal_(1.0, 0.6)
                norm.bias.normal_(0.0, 0.3)
    calibrate(net, [smooth_images((8, *shape[1:]))])
    return net.eval()


def measure(name: str, bits: int, half_width: str = "macs") -> dict[str, Any]:
    """Export one pair; what the flow found."""
    net = build(name, NETWORKS[name][0], bits=CANDIDATES[bits], half_width=half_width)
    label = bits if half_width == "macs" else HALF_CHANNELS
    return {"network": name, "bits": label, "branches": bits / 2, **exported(name, net, bits)}


def measure_method(name: str, method: str, bits: int) -> dict[str, Any]:
    """The same of a method of one body."""
    net = build(name, NETWORKS[name][0], **METHODS[method][0])
    return {
        "network": name,
        "bits": f"{bits}, {method}",
        "branches": 1,
        **exported(name, net, bits),
    }


def exported(name: str, net: MultiQuantNet, bits: int) -> dict[str, Any]:
    """What the flow finds of one bit-width."""
    size, fps = NETWORKS[name]
    images = smooth_images((1, 3, size, size))
    with tempfile.TemporaryDirectory() as folder:
        options = {"target_fps": fps, "images": images, "must_fit": False, "estimate": True}
        projects = export_finn(net, folder, [bits], **options)
        return {"size": size, **json.loads((projects[bits] / "estimate.json").read_text())}


def plain_w8a8(net: MultiQuantNet) -> Subnet:
    """One branch at 8 bits with random 8-bit weights, everything else as in the network."""
    subnet = extract_subnet(net, 8)
    subnet.branches = subnet.branches[:1]
    subnet.merge.sum.quantizers = subnet.merge.sum.quantizers[:1]
    generator = torch.Generator().manual_seed(SEED)
    for module in list(subnet.branches.modules()):
        if isinstance(module, nn.Sequential) and isinstance(module[0], (QuantConv2d, QuantLinear)):
            weights = torch.randint(-127, 128, module[0].weight.shape, generator=generator)
            module[0] = _with_8_bits(module[0], weights.float())
            module[1] = OutputScale(module[1].scale / 42, module[1].bias)  # as wide as the odd ones
    return subnet.eval()


def _with_8_bits(layer: nn.Module, weights: torch.Tensor) -> nn.Module:
    layer = copy.deepcopy(layer)
    quantizer = IntWeightConst.let(bit_width=8, scaling_init=127.0)
    donor = QuantLinear(1, 1, bias=False, weight_quant=quantizer)
    layer.weight_quant = donor.weight_quant
    layer.weight = nn.Parameter(weights, requires_grad=False)
    return layer


def measure_plain(name: str) -> dict[str, Any]:
    """The W8A8 network through the same flow."""
    size, fps = NETWORKS[name]
    net = build(name, size, bits=EVEN)
    subnet = plain_w8a8(net)
    images = smooth_images((1, 3, size, size))
    with tempfile.TemporaryDirectory() as folder:
        project = Path(folder) / "plain"
        graph = lower(subnet, ["branches.0"], images.shape)
        beside = Beside(build_config(make_target("ZCU104", None, fps, 5.0)))
        write_project(project, subnet, graph, images, beside)
        run_estimate(project)
        result = json.loads((project / "estimate.json").read_text())
    return {"network": name, "bits": "W8A8", "size": size, "branches": 1, **result}


def corrections() -> dict[tuple[str, str], tuple[int, int]]:
    """Network and bits -> LUTs that the rules estimate, and those that FINN leaves out."""
    if not CORRECTED.exists():
        return {}
    with CORRECTED.open() as file:
        return {
            (row["network"], row["bits"]): (
                int(row["estimate"]),
                int(row["thresholds"]) + int(row["products"]),
            )
            for row in csv.DictReader(file)
        }


def table(results: list[dict[str, Any]]) -> str:
    """Markdown: one line a pair, what it takes first; each is one exact partition."""
    lines = [
        "| network | bits | LUT | LUT, corrected | BRAM 18K | DSP | frames/s | latency ms "
        "| branches |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    logic = {row: luts for row, (_, luts) in corrections().items()}
    for r in results:
        performance, resources = r["performance"], r["resources"]
        assert r["partitions"] == 1 and not r["outside_the_partition"] and not r["float_layers"]
        assert not any(step["difference"] for step in r["steps"])
        missing = logic.get((r["network"], str(r["bits"])))
        corrected = "-" if missing is None else f"{resources['LUT'] + missing:.0f}"
        lines.append(
            f"| {r['network']}, {r['size']}x{r['size']} | {r['bits']} | {resources['LUT']:.0f} | "
            f"{corrected} | {resources['BRAM_18K']:.0f} | {resources['DSP']:.0f} | "
            f"{performance['estimated_throughput_fps']:.0f} | "
            f"{performance['estimated_latency_ns'] / 1e6:.2f} | {r['branches']:g} |"
        )
    return "\n".join(lines)


def load() -> list[dict[str, Any]]:
    """Results so far, in the order of `NETWORKS` and of bit-widths."""
    found = [json.loads(path.read_text()) for path in RESULTS.glob("*.json")]
    order = list(NETWORKS)
    return sorted(found, key=lambda r: (order.index(r["network"]), str(r["bits"])))


def draw(results: list[dict[str, Any]]) -> None:
    """LUTs against bits, a line per network, variants as marks."""
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    for name in NETWORKS:
        rows = [r for r in results if r["network"] == name]
        points = [(r["bits"], r["resources"]["LUT"]) for r in rows if isinstance(r["bits"], int)]
        if points:
            (line,) = axes.plot(*zip(*points, strict=True), marker="o", label=name)
            for label, (at, marker) in MARKED.items():
                marked = [r["resources"]["LUT"] for r in rows if r["bits"] == label]
                axes.plot([at] * len(marked), marked, marker, color=line.get_color())
    axes.set(xlabel="bits", ylabel="LUTs (estimate)", yscale="log", xticks=list(CANDIDATES))
    axes.legend(title="x: plain W8A8\nv: half of the channels", fontsize="small")
    figure.savefig(RESULTS / "lut.png", dpi=150)


def main() -> None:
    """Run what is missing, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=list(NETWORKS))
    parser.add_argument("--bits", nargs="+", type=int, default=list(CANDIDATES), choices=CANDIDATES)
    parser.add_argument("--plain", action="store_true", help="W8A8 networks too")
    parser.add_argument(
        "--half-channels", action="store_true", help="3 bits with half_width='channels' too"
    )
    parser.add_argument("--methods", action="store_true", help="methods of one body too")
    parser.add_argument("--table", action="store_true", help="what is there, run nothing")
    options = parser.parse_args()
    RESULTS.mkdir(parents=True, exist_ok=True)
    pairs = [(bits, name) for bits in options.bits for name in options.networks]
    runs: dict[str, Callable[[], dict[str, Any]]] = {
        f"{name}_{bits}b": partial(measure, name, bits) for bits, name in pairs
    }
    if options.half_channels:
        for name in options.networks:
            runs[f"{name}_3b_channels"] = partial(measure, name, 3, "channels")
    if options.methods:
        for name in options.networks:
            for method, (_, exports) in METHODS.items():
                for bits in exports:
                    key = f"{name}_{method.replace(' ', '_')}_{bits}b"
                    runs[key] = partial(measure_method, name, method, bits)
    if options.plain:
        for name in options.networks:
            runs[f"{name}_plain"] = partial(measure_plain, name)
    for file, run in () if options.table else runs.items():
        path = RESULTS / f"{file}.json"
        if not path.exists():
            path.write_text(json.dumps(run(), indent=1) + "\n")
            print(f"{file}: done", flush=True)
    write_between(FINN_TABLES, "finn_matrix", table(load()))
    print(table(load()))
    if importlib.util.find_spec("matplotlib"):
        draw(load())


if __name__ == "__main__":
    main()
