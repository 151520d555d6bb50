"""How many threshold tables are the same in all channels, and what one for all would save.

    python benchmarks/finn_shared_tables.py

FINN keeps a table for each channel. Where a table is one in all of them, a unit with one table
would give the same codes. LUTs are by FINN's rules, with tables as FINN places them, and with
``memory="auto"``; no FINN. Results go to benchmarks/results/finn_shared_tables.csv.
"""

import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks import finn_yosys  # noqa: E402
from benchmarks.finn_matrix import EVEN, NETWORKS, build  # noqa: E402
from brevitas_multiquant import extract_subnet  # noqa: E402
from brevitas_multiquant.cost import luts  # noqa: E402
from brevitas_multiquant.export.finn.check import branch_names  # noqa: E402
from brevitas_multiquant.export.finn.hardware import named_layers  # noqa: E402
from brevitas_multiquant.export.finn.integer_graph import IntegerGraph, Thresholds  # noqa: E402
from brevitas_multiquant.export.finn.lower import lower  # noqa: E402
from brevitas_multiquant.export.finn.target import make_target  # noqa: E402

MEASURED = (("cifar_resnet8", (2, 4, 8)), ("cifar_resnet20", (2, 4, 8)))


def row(name: str, bits: int, graph: IntegerGraph, memory: str) -> dict[str, Any]:
    """Tables and LUTs of a network."""
    tables = {one.output.name: one.table for one in graph.layers if isinstance(one, Thresholds)}
    same = {stream for stream, table in tables.items() if bool((table == table[:1]).all())}
    channels = sum(len(table) for table in tables.values())
    target = make_target("ZCU104", None, NETWORKS[name][1], 5.0, memory)
    streams = [stream for stream, _ in named_layers(graph)]
    layers = list(zip(streams, target.layers(graph), strict=True))
    units = [(stream, node) for stream, node in layers if isinstance(node, luts.Thresholds)]
    total = luts.total(node for _, node in layers)
    shared = [node for stream, node in units if stream in same]
    one_deep = [
        luts.Thresholds(one.pe, one.positions, one.threshold_bits, one.output_bits, one.pe)
        for one in shared
    ]
    return {
        **{"network": name, "bits": bits, "memory": memory, "tables": len(tables)},
        **{"same in all channels": len(same), "channels": channels},
        "different channels": sum(len(table.unique(dim=0)) for table in tables.values()),
        **{"LUT": total.luts, "LUT of tables": luts.total(node for _, node in units).luts},
        "LUT saved": luts.total(shared).luts - luts.total(one_deep).luts,
        "BRAM18 saved": luts.total(shared).bram18 - luts.total(one_deep).bram18,
    }


def main() -> None:
    """Measure all, untrained networks with norms of random scales."""
    rows = []
    for name, bits in MEASURED:
        size, _ = NETWORKS[name]
        net = build(name, size, bits=EVEN)
        for bit in bits:
            subnet = extract_subnet(net, bit)
            graph = lower(subnet, branch_names(net, bit), (1, 3, size, size))
            for memory in ("finn", "auto"):
                rows.append(row(name, bit, graph, memory))
                print(rows[-1], flush=True)
    finn_yosys.write(finn_yosys.RESULTS / "finn_shared_tables.csv", tuple(rows[0]), rows)


if __name__ == "__main__":
    main()
