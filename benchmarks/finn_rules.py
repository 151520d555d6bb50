"""What FINN itself says of every layer, to compare `brevitas_multiquant.cost.luts` with.

    make finn-env
    .venv-finn/bin/python benchmarks/finn_rules.py [--runs NAME ...] [--output FOLDER]

Each run takes a small network through FINN's flow up to its estimates, half a minute or less, and
writes one file: every layer of the finished graph as a node of the rules, with its LUTs, block
RAMs, DSPs, UltraRAMs and cycles from FINN's own report, and what its widths came from. The networks
are the integer networks that exports write, with weights and tables drawn anew at bit-widths drawn
per layer: estimates depend on types and on the numbers in them, not on training. `layers` is no
network but single layers with drawn options, the ones too that FINN does not pick by itself.
`tests/cost/luts/` reads the files in tests/data/finn_rules, so that FINN is not needed there.

``--compare`` writes no such file but a line for each run into benchmarks/results/finn_rules.csv:
FINN beside the rules, which are given the integer network alone, on the same networks with other
weights, tables and bit-widths, ``--seed`` says which, and on larger networks that no file is of.
"""

import argparse
import csv
import json
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from dataclasses import asdict, astuple
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from finn_rules_layers import drawn_layers  # noqa: E402
from finn_rules_networks import HELD_OUT, NETWORKS, RUNS, Run, drawn_network  # noqa: E402
from finn_rules_nodes import as_node, as_text, entry, in_order  # noqa: E402

from brevitas_multiquant.cost import luts  # noqa: E402
from brevitas_multiquant.export.exporter import quiet, readable_ir_version  # noqa: E402
from brevitas_multiquant.export.finn.hardware import hardware_layers  # noqa: E402
from brevitas_multiquant.export.finn.integer_graph import IntegerGraph  # noqa: E402
from brevitas_multiquant.export.finn.model import to_model  # noqa: E402
from brevitas_multiquant.export.finn.project_files import (  # noqa: E402
    CARRIED,
    PROJECT,
    build_config,
    write_json,
)
from brevitas_multiquant.export.finn.target import make_target  # noqa: E402
from brevitas_multiquant.export.sample import smooth_images  # noqa: E402

OUTPUT = ROOT / "tests" / "data" / "finn_rules"
COMPARED = ROOT / "benchmarks" / "results" / "finn_rules.csv"
LAYERS = "layers"
CLOCK_NS = 5.0

# Runs in the project's folder: the flow without its executions, then what is in the finished graph
RUNNER = """
import json
import estimate as flow
import numpy as np
from qonnx.custom_op.registry import getCustomOp

def plain(value):
    return value if isinstance(value, (int, float, str)) else [int(one) for one in value]

def sums(weights):
    weights = weights.reshape(weights.shape[0], -1) if weights.ndim > 2 else weights.T
    return [[int(np.clip(row, 0, None).sum()), int(np.clip(row, None, 0).sum())] for row in weights]

def structure(parent, model):
    rows = []
    for node in model.graph.node:
        layer, kept = getCustomOp(node), {}
        for name in layer.get_nodeattr_types():
            try:
                value = layer.get_nodeattr(name)
            except Exception:
                continue
            if isinstance(value, (int, float, str)) or len(value) <= 4:
                kept[name] = plain(value)
        types = [model.get_tensor_datatype(name) for name in (*node.input, *node.output)]
        row = {"name": node.name, "op": node.op_type, "attributes": kept}
        row["types"] = [[t.name, t.bitwidth(), int(t.min()), int(t.max())] for t in types]
        row["inputs"], row["outputs"] = list(node.input), list(node.output)
        values = model.get_initializer(node.input[1]) if len(node.input) > 1 else None
        if values is not None and node.op_type.startswith(("MVAU", "VVAU")):
            row["sums"], row["weights"] = sums(values), [int(values.min()), int(values.max())]
        elif values is not None and node.op_type.startswith("Thresholding"):
            row["table"] = [int(values.min()), int(values.max())]
        row["shape"] = model.get_tensor_shape(node.output[0])
        rows.append(row)
    with open("nodes.json", "w") as file:
        json.dump(rows, file)
    return {}

flow.Check.after_step = lambda self, model: 0.0
flow._structure = structure
flow.estimate()
"""


def finn_rows(graph: IntegerGraph, run: Run) -> list[dict[str, Any]]:
    """Layers of FINN's finished graph and its report on each."""
    shape = (1, 3, *[NETWORKS[run.network][1]] * 2)
    codes = graph.host.codes(smooth_images(shape))
    with tempfile.TemporaryDirectory() as folder:
        project = Path(folder)
        with quiet(), readable_ir_version():
            to_model(graph).save(str(project / "model.onnx"))
        np.save(project / "input.npy", codes.permute(0, 2, 3, 1).contiguous().numpy())
        np.save(project / "expected_output.npy", graph.run(codes).numpy())
        write_json(
            project / "dataflow_build_config.json",
            build_config(make_target(run.board, None, run.fps, CLOCK_NS)),
        )
        write_json(project / "specialize_layers_config.json", {"Defaults": {}})
        write_json(project / "folding_config.json", {"Defaults": {}})
        for file in CARRIED:
            shutil.copyfile(PROJECT / file, project / file)
        (project / "run.py").write_text(RUNNER)
        subprocess.run([sys.executable, "run.py"], cwd=project, check=True, capture_output=True)
        rows = json.loads((project / "nodes.json").read_text())
        report = project / "report"
        resources = json.loads((report / "estimate_layer_resources.json").read_text())
        cycles = json.loads((report / "estimate_layer_cycles.json").read_text())
    for row in rows:
        row["resources"], row["cycles"] = resources[row["name"]], cycles[row["name"]]
    return in_order(rows)


def network_file(run: Run, seed: int) -> str:
    """What is kept of a run."""
    layers = [entry(row) for row in finn_rows(drawn_network(run, seed), run)]
    about = {**asdict(run), "seed": seed, "clock_ns": CLOCK_NS, "finn-plus": version("finn-plus")}
    return as_text({**about, "layers": layers})


def layers_file(seed: int) -> str:
    """What is kept of single layers."""
    return as_text({"finn-plus": version("finn-plus"), "layers": drawn_layers(seed)})


def compare(name: str, run: Run, seed: int) -> dict[str, Any]:
    """FINN's totals, and those of the rules, which know the integer network alone."""
    graph, dsp = drawn_network(run, seed), luts.board_named(run.board).dsp
    rules = luts.fold(hardware_layers(graph), luts.target_cycles(run.fps, CLOCK_NS), dsp)
    rows = finn_rows(graph, run)
    finn = [entry(row)["finn"] for row in rows]
    compared = {"run": name, "seed": seed, "board": run.board, "fps": run.fps}
    totals = astuple(luts.total(rules, dsp))
    for index, resource in enumerate(("LUT", "BRAM_18K", "DSP", "URAM")):
        compared[f"FINN {resource}"] = sum(one[index] for one in finn)
        compared[f"rules {resource}"] = totals[index]
    compared["layers"] = len(rows)
    compared["layers that differ"] = (Counter(map(as_node, rows)) - Counter(rules)).total()
    return compared


def keep(row: dict[str, Any]) -> None:
    """Add a line to the table of comparisons."""
    new = not COMPARED.exists()
    with COMPARED.open("a", newline="") as file:
        writer = csv.DictWriter(file, list(row))
        if new:
            writer.writeheader()
        writer.writerow(row)
    print(row, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    known = {**RUNS, **HELD_OUT}
    names = [*known, LAYERS]
    parser.add_argument("--runs", nargs="+", choices=names, help="default: all that are stored")
    parser.add_argument("--output", type=Path, default=OUTPUT)
    parser.add_argument("--seed", type=int, default=0, help="of what is drawn")
    parser.add_argument("--compare", action="store_true", help="FINN beside the rules")
    options = parser.parse_args()
    default = known if options.compare else [*RUNS, LAYERS]
    for name in options.runs or default:
        seed = 1000 * options.seed + names.index(name)
        if options.compare:
            keep(compare(name, known[name], seed))
        else:
            options.output.mkdir(parents=True, exist_ok=True)
            text = layers_file(seed) if name == LAYERS else network_file(known[name], seed)
            (options.output / f"{name}.json").write_text(text)
            print(f"{name}: done", flush=True)


if __name__ == "__main__":
    main()
