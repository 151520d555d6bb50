"""What a quantized network costs on a processor: torch and onnxruntime, floats and integers.

    python -m benchmarks.deploy resnet18 mobilenetv1_100 --output benchmarks/results/deploy

One image of 224 x 224 at a time, one thread. Each row is measured in turn with the float model in
onnxruntime, and the median of the ratios of CPU time counts, so that other work on the machine does
not. Files are made as `export_onnx` makes them, without the comparison on images. Weights are as
they were drawn: speed does not depend on them. Prints and writes a table, and draws it.
"""

import argparse
import csv
import gc
import json
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import onnxruntime
import timm
import torch

from benchmarks.measure import Work, conditions, paired_ratio
from brevitas_multiquant import calibrate, extract_subnet, multiquantize
from brevitas_multiquant.export.onnx.integer.halved import with_bytes
from brevitas_multiquant.export.onnx.integer.optimized import kernels_of
from brevitas_multiquant.export.onnx.integer.walk import to_integer
from brevitas_multiquant.export.onnx.qcdq import to_onnx
from brevitas_multiquant.export.sample import smooth_images

SHAPE = (1, 3, 224, 224)
SEED = 0
NETWORKS = {
    "branches": {"bits": [2, 4]},
    "nested (double rounding)": {"bits": [2, 4, 8], "method": "double_rounding"},
    "individual": {"bits": [8], "method": "individual", "grid": "symmetric"},
}
"""What is exported as integers, at every bit-width, beside the float model."""

FIELDS = ("runtime", "network", "bits", "ratio", "bytes", "float_convolutions")


def rows_of(model: str, folder: Path, repeats: int, compiled: bool) -> Iterator[dict[str, Any]]:
    """Measured rows of one model."""
    torch.manual_seed(SEED)
    floats = timm.create_model(model, num_classes=1000).eval()
    for norm in floats.modules():  # timm starts some at 0: equal layers would be stored once
        if isinstance(norm, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(norm.weight, 0.5, 1.5)
    images = smooth_images(SHAPE)
    reference = _exported(floats, folder / "float.onnx")
    base = _runs(reference, images)
    size = reference.stat().st_size
    eager = {"runtime": "torch", "network": "float", "bits": 32, "bytes": size}
    yield {**eager, "ratio": paired_ratio(_forward(floats, images), base, repeats)}
    if compiled:
        work = _forward(torch.compile(floats), images)
        yield {**eager, "runtime": "torch compiled", "ratio": paired_ratio(work, base, repeats)}
    yield {**eager, "runtime": "onnxruntime", "ratio": 1.0, "float_convolutions": None}
    for name, options in NETWORKS.items():
        net = multiquantize(floats, profile="finn", input_shape=SHAPE, **options)  # type: ignore[arg-type]
        calibrate(net, [images])
        for bits in net.bits:
            written, _ = with_bytes(extract_subnet(net.eval(), bits))
            exact = to_onnx(written, images)
            kinds = {"QCDQ": exact} if bits == 2 else {}
            kinds["integers"] = to_integer(exact).model
            if bits == 8:  # of fewer bits the files are the same
                kinds["integers, for VNNI"] = to_integer(exact, "vnni").model
            for kind, proto in kinds.items():
                path = folder / f"{name[:3]}_{bits}_{kind}.onnx"
                path.write_bytes(proto.SerializeToString())
                yield {
                    "runtime": f"onnxruntime, {kind}",
                    "network": name,
                    "bits": bits,
                    "ratio": paired_ratio(_runs(path, images), base, repeats),
                    "bytes": path.stat().st_size,
                    "float_convolutions": kernels_of(proto).float_convolutions,
                }
            gc.collect()


def _exported(model: torch.nn.Module, path: Path) -> Path:
    """A float model as an ONNX file."""
    names: dict[str, Any] = {"input_names": ["input"], "output_names": ["logits"]}
    torch.onnx.export(model, (torch.zeros(SHAPE),), path, dynamo=False, opset_version=13, **names)
    return path


def _runs(path: Path, images: torch.Tensor) -> Work:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    feed = {session.get_inputs()[0].name: images.numpy().astype(np.float32)}
    return lambda: session.run(None, feed)


def _forward(model: Callable[..., torch.Tensor], images: torch.Tensor) -> Work:
    def work() -> torch.Tensor:
        with torch.inference_mode():
            return model(images)

    return work


def draw(model: str, rows: list[dict[str, Any]], path: Path) -> None:
    """Bars of CPU time, the float model in onnxruntime as the unit."""
    labels = [f"{row['network']}, {row['bits']} bits\n{row['runtime']}" for row in rows]
    colours = ["#2a7f62" if "integers" in row["runtime"] else "#9a9a9a" for row in rows]
    figure, axes = plt.subplots(figsize=(7, 0.55 * len(rows) + 1), layout="constrained")
    bars = axes.barh(labels, [row["ratio"] for row in rows], color=colours)
    axes.bar_label(
        bars, [f"{r['ratio']:.2f}  ({r['bytes'] / 1e6:.1f} MB)" for r in rows], padding=3
    )
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_xlim(0, max(row["ratio"] for row in rows) * 1.25)
    axes.invert_yaxis()
    axes.set_xlabel("CPU time over the float model in onnxruntime, one thread")
    axes.set_title(f"{model}, 224 x 224; size of the file in brackets")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("models", nargs="+", help="of timm")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/deploy"))
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--compiled", action="store_true", help="torch.compile, too: minutes")
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.output.mkdir(parents=True, exist_ok=True)
    for model in options.models:
        rows = []
        with tempfile.TemporaryDirectory() as folder:
            for row in rows_of(model, Path(folder), options.repeats, options.compiled):
                rows.append(row)
                print(model, *(row.get(field, "") for field in FIELDS), sep=" | ", flush=True)
        with (options.output / f"{model}.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, FIELDS)
            writer.writeheader()
            writer.writerows({**row, "ratio": round(row["ratio"], 3)} for row in rows)
        draw(model, rows, options.output / f"{model}.png")
        record = {**conditions(SEED), "onnxruntime": onnxruntime.__version__}
        (options.output / "conditions.json").write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
