"""FINN's own steps on some of the networks that map: a table of docs/finn_tables.md.

    .venv-finn/bin/python -m benchmarks.finn_flow            # what is missing, minutes each
    .venv-finn/bin/python -m benchmarks.finn_flow --table    # what is there, run nothing

Networks of `finn_edge.py` and `finn_zoo.py` at 2 bits, norm scales of both signs, through
`export_finn(..., estimate=True)`: the model is executed after every step and compared with torch's
integers. LUTs are FINN's and those of the rules without FINN, for 100 frames a second on a ZCU104.
Each row is appended to ``benchmarks/results/finn_flow.csv`` when it is done, and not run again.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

from benchmarks.edge_networks import EDGE, EdgeNetwork
from benchmarks.finn_edge import graphs_of, luts_of, network_of, size_of
from benchmarks.finn_zoo import keep, load, zoo
from benchmarks.pages import FINN_TABLES, ROOT, write_between
from brevitas_multiquant.export import export_finn
from brevitas_multiquant.export.sample import smooth_images

RESULTS = ROOT / "benchmarks" / "results" / "finn_flow.csv"
COLUMNS = (
    *("network", "input", "output", "steps", "difference", "partitions", "layers"),
    *("LUT, FINN", "LUT, rules", "minutes"),
)
FPS = 100
NETWORKS = (
    *("segmentation, U-Net", "boxes of a grid (YOLO head)", "torchvision mobilenet_v2"),
    *("timm resnet10t", "torchvision squeezenet1_1", "torchvision shufflenet_v2_x0_5"),
    *("timm mobilenetv3_small_050", "timm starnet_s1", "timm seresnet18", "timm regnetx_002"),
)


def measured(row: EdgeNetwork) -> dict[str, str]:
    """One line of the table.

    Raises:
        ExportError: of `export_finn`, where a step changes an integer.
        RuntimeError: something is left for the processor.
    """
    start = time.perf_counter()
    net = network_of(row, [2])
    graph = graphs_of(net)[2]
    images = smooth_images((1, *row.input_shape[1:]))
    with tempfile.TemporaryDirectory() as folder:
        options = {"target_fps": FPS, "must_fit": False, "estimate": True}
        export_finn(net, folder, images=images, **options)  # type: ignore[arg-type]
        found = json.loads((Path(folder) / "2b" / "estimate.json").read_text())
    if found["outside_the_partition"] or found["float_layers"] or found["not_hardware"]:
        raise RuntimeError(f"{row.name}: expected integers in hardware alone, got {found}")
    cells = (
        *(row.name, size_of(row.input_shape[1:]), size_of(graph.output.shape)),
        *(len(found["steps"]), f"{max(step['difference'] for step in found['steps']):g}"),
        *(found["partitions"], sum(found["steps"][-1]["nodes"].values())),
        *(f"{found['resources']['LUT']:.0f}", luts_of(graph, FPS)),
        f"{(time.perf_counter() - start) / 60:.1f}",
    )
    return dict(zip(COLUMNS, map(str, cells), strict=True))


def table() -> str:
    """Markdown of what is there."""
    rows = load(RESULTS)
    lines = [f"| {' | '.join(COLUMNS)} |", "|" + "---|" * len(COLUMNS)]
    return "\n".join([*lines, *(f"| {' | '.join(row.values())} |" for row in rows)])


def main() -> None:
    """Run what is missing, then write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--table", action="store_true", help="what is there, run nothing")
    if not parser.parse_args().table:
        rows = {row.name: row for row in (*EDGE, *zoo())}
        done = {row["network"] for row in load(RESULTS)}
        for name in NETWORKS:
            if name not in done:
                keep(measured(rows[name]), RESULTS)
                print(" | ".join(load(RESULTS)[-1].values()), flush=True)
    write_between(FINN_TABLES, "finn_flow", table())


if __name__ == "__main__":
    main()
