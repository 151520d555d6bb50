"""What the LUTs that FINN's estimate leaves out make in the matrix.

    python benchmarks/finn_corrected.py && python benchmarks/finn_matrix.py --table

For each row of `finn_matrix.py` the same network is built again and counted by
`brevitas_multiquant.cost.luts`; no FINN. Results go to benchmarks/results/finn_corrected.csv, a
line a row; ``finn_matrix.py --table`` puts them beside FINN's numbers.
"""

import sys
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

from torch import nn

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks import finn_yosys  # noqa: E402
from benchmarks.finn_matrix import (  # noqa: E402
    CANDIDATES,
    CORRECTED,
    EVEN,
    HALF_CHANNELS,
    METHODS,
    NETWORKS,
    WITH_HALF,
    build,
    load,
    plain_w8a8,
)
from brevitas_multiquant import extract_subnet  # noqa: E402
from brevitas_multiquant.cost import luts  # noqa: E402
from brevitas_multiquant.export.finn.check import branch_names  # noqa: E402
from brevitas_multiquant.export.finn.lower import lower  # noqa: E402
from brevitas_multiquant.export.finn.target import make_target  # noqa: E402


def options(label: str) -> dict[str, Any]:
    """How the network of a row is built."""
    if label == HALF_CHANNELS:
        return {"bits": WITH_HALF, "half_width": "channels"}
    if label == "W8A8":
        return {"bits": EVEN}
    if label.isdigit():
        return {"bits": CANDIDATES[int(label)], "half_width": "macs"}
    return METHODS[label.partition(", ")[2]][0]


def layers(name: str, label: str, net: nn.Module) -> list[luts.Node]:
    """The hardware of a row."""
    size, fps = NETWORKS[name]
    if label == "W8A8":
        subnet, branches = plain_w8a8(net), ["branches.0"]
    else:
        subnet = extract_subnet(net, int(label.partition(",")[0]))
        branches = branch_names(net, subnet.bits)
    graph = lower(subnet, branches, (1, 3, size, size))
    return list(make_target("ZCU104", None, fps, 5.0).layers(graph))


def rows() -> Iterator[dict[str, Any]]:
    """A row each: what the rules estimate, which is FINN's number, and the logic beside it."""
    found = [(row["network"], str(row["bits"])) for row in load()]
    for (name, _), group in groupby(found, lambda row: (row[0], options(row[1]))):
        net = None
        for _, label in group:
            net = net or build(name, NETWORKS[name][0], **options(label))
            nodes = layers(name, label, net)
            tables = [node for node in nodes if isinstance(node, luts.Thresholds)]
            thresholds = sum(map(luts.threshold_logic, tables))
            yield {
                **{"network": name, "bits": label, "estimate": luts.total(nodes).luts},
                "thresholds": thresholds,
                "products": sum(map(luts.uncounted_luts, nodes)) - thresholds,
            }


def main() -> None:
    """Count all rows."""
    found = []
    for row in rows():
        print(row, flush=True)
        found.append(row)
    finn_yosys.write(CORRECTED, tuple(found[0]), found)


if __name__ == "__main__":
    main()
