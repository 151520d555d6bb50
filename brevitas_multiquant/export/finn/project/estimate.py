"""FINN's flow up to its estimates, executed and compared with ``expected_output.npy`` at each step.

Run ``python estimate.py`` in this folder, in an environment with finn-plus. Neither Vivado nor a
network connection is needed. Writes ``estimate.json`` and FINN's own reports under ``report/``.
"""

import copy
import json
import logging
import os
import shutil
import sys
import time
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent
LAST_STEP = "step_generate_estimate_reports"
PARTITION_STEP = "step_create_dataflow_partition"
FOLDING_STEP = "step_apply_folding_config"
HARDWARE = "finn.custom_op.fpgadataflow"
STEP_SAMPLES = 4
"""Images that are executed after every step; tables of other bit-widths are tried on all."""


def prepare(build: Path = HERE / "finn_build") -> None:
    """What FINN looks for before its first import; without it, it asks for Vivado.

    Args:
        build: folder of FINN's working files.
    """
    os.environ.setdefault("FINN_BUILD_DIR", str(build))
    os.environ.setdefault("FINN_SETTINGS", str(build / "settings.yaml"))
    build.mkdir(exist_ok=True)
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    sys.path.insert(0, str(HERE))
    import finn.xsi

    # FINN's steps name it in annotations alone; looking it up would start Vivado's simulator
    finn.xsi.SimEngine = object


def _execute(model: Any, codes: np.ndarray) -> np.ndarray:
    from qonnx.core.onnx_exec import execute_onnx

    name = model.graph.input[0].name
    images = [execute_onnx(model, {name: image[None]}) for image in codes]
    return np.concatenate([result[model.graph.output[0].name] for result in images])


class Check:
    """Executes the model as it is after a step, in front of and inside the partition."""

    def __init__(self, folder: Path) -> None:
        self.codes = np.load(folder / "input.npy").astype(np.float32)
        self.expected = np.load(folder / "expected_output.npy")
        self.parent: Any = None

    def after_step(self, model: Any) -> float:
        """Largest difference on the first images."""
        return self.difference(model, self.expected[:STEP_SAMPLES])

    def difference(self, model: Any, expected: np.ndarray) -> float:
        """Largest difference of the accelerator's integers from the network's."""
        codes = self.codes[: len(expected)]
        if self.parent is None:
            actual = _execute(model, codes)
        else:
            from finn.util.verification import despecialize_model
            from qonnx.custom_op.registry import getCustomOp

            inner = HERE / "finn_build" / "checked.onnx"
            despecialize_model(model).save(str(inner))
            (partition,) = self.parent.get_nodes_by_op_type("StreamingDataflowPartition")
            getCustomOp(partition).set_nodeattr("model", str(inner))
            actual = _execute(self.parent, codes)
        flat = expected.reshape(len(actual), -1)
        return float(np.abs(actual.reshape(len(actual), -1) - flat).max())


def _float_layers(model: Any) -> list[str]:
    """Layers of the partition that compute in floating point."""
    found = []
    for node in model.graph.node:
        types = [model.get_tensor_datatype(name).name for name in (*node.input, *node.output)]
        if any("FLOAT" in name for name in types):
            found.append(node.name)
    return found


def _weight_types(model: Any) -> dict[str, int]:
    """How many layers hold weights of which type."""
    from qonnx.custom_op.registry import getCustomOp

    layers = [n for n in model.graph.node if n.op_type.startswith(("MVAU", "VVAU"))]
    types = Counter(getCustomOp(node).get_input_datatype(1).name for node in layers)
    return dict(sorted(types.items()))


def estimate(folder: Path = HERE) -> dict[str, Any]:
    """Run the steps, check each, and gather what they give.

    Raises:
        RuntimeError: after a step the integers differ, or the network is not one partition.
    """
    prepare()
    from finn.builder.build_dataflow import resolve_build_steps
    from finn.builder.build_dataflow_config import DataflowBuildConfig, DataflowOutputType
    from qonnx.core.modelwrapper import ModelWrapper

    cfg = DataflowBuildConfig.construct_from(folder / "dataflow_build_config.json")
    cfg.output_dir = str(folder / "finn_build" / "output")
    cfg.stop_step = LAST_STEP
    cfg.generate_outputs = [DataflowOutputType.ESTIMATE_REPORTS]
    model, check = ModelWrapper(str(folder / "model.onnx")), Check(folder)
    folding = json.loads((folder / "folding_config.json").read_text())
    steps = [_entry("model.onnx", model, check, 0.0)]
    for step in resolve_build_steps(cfg):
        start = time.process_time()
        model = step(model, cfg)
        seconds = time.process_time() - start
        if step.__name__ == PARTITION_STEP:
            models = cfg.get_intermediate_models_directory()
            check.parent = ModelWrapper(str(models / "dataflow_parent.onnx"))
        steps.append(_entry(step.__name__, model, check, seconds))
        if step.__name__ == FOLDING_STEP:
            _check_folding(folding, model)
    result = {"steps": steps, **_structure(check.parent, model), **_reports(cfg)}
    if (folder / "tables").is_dir():
        result["switched"] = _switched(model, check, folder)
    shutil.copytree(Path(cfg.output_dir) / "report", folder / "report", dirs_exist_ok=True)
    (folder / "estimate.json").write_text(json.dumps(result, indent=2) + "\n")
    return result


def _check_folding(folding: dict[str, Any], model: Any) -> None:
    """FINN would leave out what it does not find."""
    names = [node.name for node in model.graph.node]
    if unknown := [name for name in folding if name not in ("Defaults", *names)]:
        raise RuntimeError(f"folding_config.json: expected layers of {names}, got {unknown}")


def _entry(name: str, model: Any, check: Check, seconds: float) -> dict[str, Any]:
    difference = check.after_step(model)
    if difference != 0:
        raise RuntimeError(
            f"after {name}: expected the integers of expected_output.npy, got a difference of "
            f"{difference:g}"
        )
    kinds = dict(sorted(Counter(node.op_type for node in model.graph.node).items()))
    print(f"{name}: difference 0, {sum(kinds.values())} nodes, {seconds:.1f} s", flush=True)
    return {"step": name, "difference": difference, "seconds": round(seconds, 2), "nodes": kinds}


def _switched(model: Any, check: Check, folder: Path) -> dict[str, float]:
    """Write each bit-width's tables into the finished hardware and execute it."""
    from qonnx.custom_op.registry import getCustomOp

    nodes = [n for n in model.graph.node if n.op_type.startswith("Thresholding")]
    differences = {}
    (folder / "runtime_weights").mkdir(exist_ok=True)
    ports = [_port(node, getCustomOp(node)) for node in nodes]
    (folder / "runtime_weights" / "ports.json").write_text(json.dumps(ports, indent=2) + "\n")
    for path in sorted((folder / "tables").glob("*.npz")):
        bits, tables = path.stem, np.load(path)
        if {node.input[1] for node in nodes} != set(tables):
            raise RuntimeError(f"expected a threshold layer for each of {sorted(tables)}")
        words = folder / "runtime_weights" / bits
        words.mkdir(parents=True, exist_ok=True)
        twin = copy.deepcopy(model)
        for index, node in enumerate(nodes):
            layer, table = getCustomOp(node), tables[node.input[1]]
            datatype = layer.get_input_datatype(1)
            if not (datatype.min() <= table.min() and table.max() <= datatype.max()):
                raise RuntimeError(f"{node.name}: {datatype} does not hold the table of {bits}")
            twin.set_initializer(node.input[1], table)
            lines = [f"{word:08x}\n" for word in _words(layer, table)]
            (words / f"{index}_{node.name}.dat").write_text("".join(lines))
        expected = np.load(folder / f"expected_output_{bits}.npy")
        differences[bits] = check.difference(twin, expected)
        if differences[bits] != 0:
            raise RuntimeError(f"switched to {bits}: a difference of {differences[bits]:g}")
        print(f"switched to {bits}: difference 0 on {len(expected)} images", flush=True)
    return differences


def _port(node: Any, layer: Any) -> dict[str, Any]:
    """What words are made for: they fit one parallelism of one layer."""
    pe, steps = layer.get_nodeattr("PE"), layer.get_nodeattr("numSteps")
    folds = layer.get_nodeattr("NumChannels") // pe
    words = folds * _power_of_two(pe) * _power_of_two(steps)
    return {"layer": node.name, "PE": pe, "words": words}


def _words(layer: Any, table: np.ndarray) -> list[int]:
    """32-bit words of a threshold layer's port, in the order of its addresses.

    What FINN's ``make_weight_file`` writes, which packs and parses every word as a string.
    """
    steps, pe = layer.get_nodeattr("numSteps"), layer.get_nodeattr("PE")
    folds = layer.get_nodeattr("NumChannels") // pe
    bits = layer.get_input_datatype(1).bitwidth()
    words = np.zeros((folds, _power_of_two(pe), _power_of_two(steps)), dtype=np.int64)
    words[:, :pe, :steps] = table.reshape(folds, pe, steps)
    return (words & (2**bits - 1)).ravel().tolist()


def _power_of_two(count: int) -> int:
    """The smallest one that is no less than ``count``."""
    return 1 << (count - 1).bit_length()


def _structure(parent: Any, model: Any) -> dict[str, Any]:
    kinds = Counter(node.op_type for node in parent.graph.node)
    partitions = kinds.pop("StreamingDataflowPartition")
    if partitions != 1:
        raise RuntimeError(f"expected one dataflow partition, got {partitions}")
    return {
        "partitions": partitions,
        "outside_the_partition": dict(kinds),
        "float_layers": _float_layers(model),
        "weight_types": _weight_types(model),
        "not_hardware": [n.name for n in model.graph.node if not n.domain.startswith(HARDWARE)],
    }


def _reports(cfg: Any) -> dict[str, Any]:
    report = Path(cfg.output_dir) / "report"
    performance = json.loads((report / "estimate_network_performance.json").read_text())
    resources = json.loads((report / "estimate_layer_resources.json").read_text())["total"]
    return {
        "performance": performance,
        "resources": {name: float(value) for name, value in resources.items()},
    }


def main() -> int:
    """Run the steps; 1 where the integers differ, or FINN is missing."""
    try:
        estimate()
    except ImportError as error:
        print(f"error: {error}; estimate.py needs finn-plus and what it brings", file=sys.stderr)
        return 1
    except RuntimeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
