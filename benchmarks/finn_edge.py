"""What becomes of everyday edge networks in the finn profile: the table of docs/finn_tables.md.

    python -m benchmarks.finn_edge          # all of `edge_networks.EDGE`, some minutes
    python -m benchmarks.finn_edge --only SiLU ResNet

Each network gets norm scales of both signs. Where it maps, its integers are executed at every
bit-width and compared with torch: a difference of 0, or the row says what it was. Then it is
exported: `export_finn` runs the graph that FINN gets and compares it with torch, too. LUTs are by
FINN's rules (`brevitas_multiquant.cost.luts`), for 1000 frames a second on a ZCU104.
Writes ``benchmarks/results/finn_edge.csv`` and the table between the marks in docs/finn_tables.md.
"""

import argparse
import csv
import tempfile
from collections.abc import Mapping, Sequence

import torch
from torch import nn

from benchmarks.edge_networks import EDGE, EdgeNetwork
from benchmarks.pages import FINN_TABLES, ROOT, write_between
from brevitas_multiquant import (
    MultiQuantError,
    MultiQuantNet,
    calibrate,
    extract_subnet,
    multiquantize,
)
from brevitas_multiquant.cost import luts
from brevitas_multiquant.errors import FinnMappingError
from brevitas_multiquant.export import export_finn
from brevitas_multiquant.export.finn.check import branch_names
from brevitas_multiquant.export.finn.hardware import hardware_layers
from brevitas_multiquant.export.finn.integer_graph import IntegerGraph
from brevitas_multiquant.export.finn.lower import lower
from brevitas_multiquant.export.sample import smooth_images

RESULTS = ROOT / "benchmarks" / "results" / "finn_edge.csv"
BITS = (2, 4)
COLUMNS = (
    "network",
    "input",
    "outcome",
    "difference",
    "export",
    *(f"LUT at {bits}" for bits in BITS),
)


def network_of(row: EdgeNetwork, bits: Sequence[int] = BITS) -> MultiQuantNet:
    """Calibrated, with norm scales of both signs, in evaluation mode.

    Raises:
        MultiQuantError: the network is refused.
    """
    torch.manual_seed(0)
    net = multiquantize(row.make(), bits, profile="finn", input_shape=row.input_shape)
    with torch.no_grad():
        for norm in net.modules():
            if isinstance(norm, (nn.BatchNorm1d, nn.BatchNorm2d)):
                norm.weight.normal_(1.0, 0.6)
                norm.bias.normal_(0.0, 0.3)
    calibrate(net, [smooth_images((8, *row.input_shape[1:]))])  # type: ignore[arg-type]
    return net.eval()


def graphs_of(net: MultiQuantNet) -> dict[int, IntegerGraph]:
    """Bit-width -> the network of integers.

    Raises:
        FinnMappingError: with every reason why not.
    """
    return {
        bits: lower(extract_subnet(net, bits), branch_names(net, bits), net.input_shape or ())
        for bits in net.bits
    }


def brought_over(
    row: EdgeNetwork, bits: Sequence[int] = BITS
) -> tuple[MultiQuantNet | None, dict[int, IntegerGraph], str]:
    """The network, its integers at each bit-width, and why it is refused: nothing if it maps."""
    try:
        net = network_of(row, bits)
        return net, graphs_of(net), ""
    except FinnMappingError as error:
        return None, {}, "; ".join(dict.fromkeys(advice for _, advice in error.problems))
    except MultiQuantError as error:
        return None, {}, " ".join(str(error).split())


def largest_difference(net: MultiQuantNet, graphs: dict[int, IntegerGraph]) -> float:
    """Of the logits of the integers from torch's, at every bit-width."""
    images = smooth_images((2, *net.input_shape[1:]))  # type: ignore[index, arg-type]
    with torch.no_grad():
        differences = [
            (graph.logits(images) - extract_subnet(net, bits)(images)).abs().max()
            for bits, graph in graphs.items()
        ]
    return float(max(differences))


def exported(net: MultiQuantNet) -> str:
    """Whether `export_finn` writes verified projects; an error that is not ours is shown, too."""
    with tempfile.TemporaryDirectory() as folder:
        try:  # the board does not matter here: many of these are larger than the default one
            export_finn(net, folder, target_fps=10, must_fit=False)
        except Exception as error:
            return f"{type(error).__name__}: {' '.join(str(error).split())}"
    return "verified"


def measured(row: EdgeNetwork) -> dict[str, str]:
    """One line of the table."""
    size = size_of(row.input_shape[1:])
    net, graphs, reason = brought_over(row)
    if net is None:
        cells = (row.name, size, f"refused: {reason}", *("-",) * (len(COLUMNS) - 3))
        return dict(zip(COLUMNS, cells, strict=True))
    costs = (luts_of(graph, 1000) for graph in graphs.values())
    cells = (row.name, size, "maps", f"{largest_difference(net, graphs):g}", exported(net))
    return dict(zip(COLUMNS, (*cells, *costs), strict=True))


def luts_of(graph: IntegerGraph, fps: int) -> str:
    """By FINN's rules, for frames a second."""
    return str(luts.total(luts.fold(hardware_layers(graph), luts.target_cycles(fps))).luts)


def size_of(shape: Sequence[int]) -> str:
    """Channels and sizes, as ``3x32x32``."""
    return "x".join(map(str, shape))


def markdown(rows: Sequence[Mapping[str, str]]) -> str:
    """The table, and how many map."""
    lines = [f"| {' | '.join(rows[0])} |", "|" + "---|" * len(rows[0])]
    lines += [f"| {' | '.join(row.values())} |" for row in rows]
    maps = sum(row["outcome"] == "maps" for row in rows)
    verified = sum(row["export"] == "verified" for row in rows)
    counted = f"{maps} of {len(rows)} map, {verified} are exported and verified.\n"
    return "\n".join([counted, *lines])


def main() -> None:
    """Run all, or those whose names have one of some words."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", default=[""], help="words of names; writes nothing")
    words = parser.parse_args().only
    rows = []
    for row in EDGE:
        if any(word in row.name for word in words):
            rows.append(measured(row))
            print(" | ".join(rows[-1].values()), flush=True)
    if words == [""]:
        with RESULTS.open("w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
        write_between(FINN_TABLES, "finn_edge", markdown(rows))


if __name__ == "__main__":
    main()
