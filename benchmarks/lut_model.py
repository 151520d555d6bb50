"""LUTs of bits that were still to be chosen, against FINN's report on the network that has them.

    make finn-env
    .venv-finn/bin/python benchmarks/lut_model.py [--runs NAME ...] [--draws N] [--first N]
    .venv/bin/python benchmarks/lut_model.py --plot

For each run the terms that `brevitas_multiquant.allocation` counts LUTs with are made once, from
the float model and the frame rate. Then bits of weights and activations are drawn for every site,
the network that has them is converted, calibrated and lowered, and FINN estimates it, layer by
layer (`finn_rules.py`): nothing of that is known to the terms. A line for each assignment goes to
benchmarks/results/lut_model.csv, and ``--plot`` draws them, with the bit operations beside.
"""

import argparse
import csv
import random
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from finn_rules_networks import NETWORKS, SEED, Run  # noqa: E402

from brevitas_multiquant import (  # noqa: E402
    Assignment,
    MultiQuantNet,
    calibrate,
    extract_subnet,
    multiquantize,
)
from brevitas_multiquant.allocation import Budget  # noqa: E402
from brevitas_multiquant.allocation.costs import bitops_terms  # noqa: E402
from brevitas_multiquant.allocation.hardware import lut_terms  # noqa: E402
from brevitas_multiquant.allocation.sites import KINDS, sites_of  # noqa: E402
from brevitas_multiquant.cost.terms import Term, total_of  # noqa: E402
from brevitas_multiquant.export.finn.check import branch_names  # noqa: E402
from brevitas_multiquant.export.finn.lower import lower  # noqa: E402
from brevitas_multiquant.export.sample import smooth_images  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results" / "lut_model.csv"
PLOT = RESULTS.with_suffix(".png")
CANDIDATES, OWN = (2, 3, 4, 5, 6, 8), 4
"""Bits that are drawn, and those of the network, which sums behind additions have."""
RUNS = {
    "resnet8": Run("resnet8", 1000),
    "resnet8_slow": Run("resnet8", 200, board="Pynq-Z1"),
    "resnet8_fast": Run("resnet8", 5000),
    "vgg": Run("vgg", 1000),
    "mobilenet": Run("mobilenet", 2000),
    "resnet20": Run("resnet20", 1000),
    "mobilenetv1": Run("mobilenetv1", 500),
    "vgg11": Run("vgg11", 500),
}


def float_model(run: Run) -> nn.Module:
    """With norms of both signs, whose scales differ: tables as irregular as after training."""
    torch.manual_seed(SEED)
    model = NETWORKS[run.network][0]().eval()
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.normal_(norm.weight, 1.0, 0.6)
            nn.init.normal_(norm.bias, 0.0, 0.3)
    return model


def network_at(model: nn.Module, run: Run, assignment: Assignment) -> MultiQuantNet:
    """The network of an assignment, calibrated."""
    shape = (1, 3, *[NETWORKS[run.network][1]] * 2)
    net = multiquantize(model, assignment, profile="finn", input_shape=shape, check=False)
    calibrate(net, [smooth_images((8, *shape[1:]))])
    return net.eval()


def counted(name: str) -> tuple[Sequence[Term], Sequence[Term], tuple[str, ...]]:
    """Terms of LUTs and DSPs, and of bit operations, and the sites that they are of."""
    run = RUNS[name]
    model, size = float_model(run), NETWORKS[run.network][1]
    shape = (1, 3, size, size)
    converted = multiquantize(model, [2], profile="finn", input_shape=shape, check=False)
    sites = sites_of(
        *(converted, shape, 2, None),
        is_float=True,
        at=lambda assignment: network_at(model, run, assignment),
        asked=OWN,
    )
    budget = Budget(luts=1e9, target_fps=run.fps, board=run.board)
    choices = dict.fromkeys(KINDS, CANDIDATES)
    operations = bitops_terms(sites, Budget(bitops=1), choices)
    return lut_terms(sites, budget, choices).terms, operations.terms, sites.names


def drawn(name: str, draw: int, sites: Sequence[str]) -> Assignment:
    """Bits of every site, by chance."""
    chance = random.Random(f"{name} {draw}")
    pairs = {site: (chance.choice(CANDIDATES), chance.choice(CANDIDATES)) for site in sites}
    return Assignment(OWN, pairs)


def compare(name: str, draws: range) -> Iterator[dict[str, Any]]:
    """Lines for some assignments of one network."""
    from finn_rules import finn_rows  # it needs FINN's environment
    from finn_rules_nodes import entry

    run, (terms, operations, sites) = RUNS[name], counted(name)
    model, shape = float_model(run), (1, 3, *[NETWORKS[run.network][1]] * 2)
    for draw in draws:
        assignment = drawn(name, draw, sites)
        bits = {(s, kind): getattr(p, kind) for s, p in assignment.items() for kind in KINDS}
        luts, dsp = total_of(terms, bits)
        net = network_at(model, run, assignment)
        graph = lower(extract_subnet(net, assignment), branch_names(net, OWN), shape)
        finn = [entry(row)["finn"] for row in finn_rows(graph, run)]
        finn_luts, finn_dsp = sum(one[0] for one in finn), sum(one[2] for one in finn)
        yield {
            **{"run": name, "draw": draw, "board": run.board, "fps": run.fps},
            **{"FINN LUT": finn_luts, "terms LUT": round(luts)},
            "error %": round(100 * (luts / finn_luts - 1), 3),
            **{"FINN DSP": finn_dsp, "terms DSP": dsp},
            "GBitOPs": round(total_of(operations, bits)[0] / 1e9, 4),
            "assignment": assignment.name,
        }


def keep(row: dict[str, Any]) -> None:
    """Add a line to the results."""
    new = not RESULTS.exists()
    with RESULTS.open("a", newline="") as file:
        writer = csv.DictWriter(file, list(row))
        if new:
            writer.writeheader()
        writer.writerow(row)
    print(row, flush=True)


def plot() -> None:
    """FINN's LUTs over those of the terms, and over bit operations."""
    from matplotlib import pyplot as plt

    with RESULTS.open(newline="") as file:
        rows = list(csv.DictReader(file))
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4.5), layout="constrained")
    names = list(dict.fromkeys(row["run"] for row in rows))
    for name in names:
        mine = [row for row in rows if row["run"] == name]
        finn = [float(row["FINN LUT"]) for row in mine]
        left.loglog([float(row["terms LUT"]) for row in mine], finn, "o", label=name)
        right.loglog([float(row["GBitOPs"]) for row in mine], finn, "o", label=name)
    ends = left.get_xlim()
    left.plot(ends, ends, color="grey", linewidth=0.8, zorder=0)
    worst = max(abs(float(row["error %"])) for row in rows)
    left.set(xlabel="LUTs before the network exists", ylabel="LUTs that FINN reports")
    left.set_title(f"{len(rows)} drawn assignments, largest error {worst:.2f}%")
    right.set(xlabel="GBitOPs", title="bit operations are no stand-in")
    left.legend()
    figure.savefig(PLOT, dpi=130)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", nargs="+", choices=RUNS, default=list(RUNS))
    parser.add_argument("--draws", type=int, default=3, help="assignments of each")
    parser.add_argument("--first", type=int, default=0, help="number of the first draw")
    parser.add_argument("--plot", action="store_true", help="only draw what there is")
    options = parser.parse_args()
    if options.plot:
        plot()
        return
    for name in options.runs:
        for row in compare(name, range(options.first, options.first + options.draws)):
            keep(row)


if __name__ == "__main__":
    main()
