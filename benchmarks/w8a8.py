"""Top-1 of plain W8A8 networks, for comparison: Brevitas's own quantization of the float runs.

    python benchmarks/cifar10_short.py --data-dir FOLDER --output OUT --variants float
    python -m benchmarks.w8a8 OUT/float_s0 OUT/float_s1 OUT/float_s2

Each float network's batch norms are merged, 8-bit weights and activations put in by
``brevitas.graph.quantize``, activation ranges calibrated on one batch of training images, and the
validation images classified. No training after that. Writes what ``finn_report.py`` reads.
"""

import argparse
import csv
from pathlib import Path

import torch
from accelerate import Accelerator
from brevitas.graph.calibrate import calibration_mode
from brevitas.graph.quantize import preprocess_for_quantize, quantize
from torch import Tensor, nn

import brevitas_multiquant.core.cifar_networks  # noqa: F401  registers the CIFAR networks
from brevitas_multiquant.recipes.evaluate import top1
from brevitas_multiquant.recipes.network.build import create_float_model, model_source
from brevitas_multiquant.recipes.network.trainee import Trainee
from brevitas_multiquant.recipes.options.train import parse_train
from brevitas_multiquant.recipes.run.create import create_batches

RESULTS = Path(__file__).parent / "results" / "cifar10_short"
BITS = 8


class Dequantized(nn.Module):
    """The values of a network that returns Brevitas's quantized tensors."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, classes)."""
        logits = self.net(images)
        return getattr(logits, "value", logits)


def accuracy(run: Path) -> float:
    """Percent of the validation images that the W8A8 form of a float run gets right."""
    options = parse_train(["-c", str(run / "args.yaml"), "--output", str(run / "unused")])
    accelerator = Accelerator(cpu=True)
    train, val = create_batches(options.data, 1, accelerator)
    source = model_source(options.model, train.num_classes)
    model = create_float_model(source, False, str(run / "last.safetensors")).eval()
    quantized = Dequantized(quantize(preprocess_for_quantize(model))).eval()
    images, _ = next(iter(train.epoch(0)))
    with torch.no_grad(), calibration_mode(quantized):
        quantized(images)
    return top1(Trainee(quantized), val, [BITS], accelerator)[BITS]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path, help="folders float_s0 and so on")
    for run in parser.parse_args().runs:
        name = run.name.replace("float", "w8a8")
        top = accuracy(run)
        print(f"{name}: {top:.2f}")
        path = RESULTS / name / "summary.csv"
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", newline="") as file:
            csv.writer(file).writerows([["epoch", f"eval_top1_{BITS}b"], [1, round(top, 4)]])


if __name__ == "__main__":
    main()
