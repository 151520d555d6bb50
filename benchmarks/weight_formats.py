"""Weight formats on handwritten digits: a check that each trains, small enough for any machine.

    python benchmarks/weight_formats.py [--seeds 5] [--steps 300]

A CNN of three convolutions on scikit-learn's 8x8 digits (1,437 to train on, 360 to test), from
scratch at 2 and 4 bits with in-place distillation, profile ``finn``. Prints a table of the top-1
after the last step, mean and standard deviation over the seeds.
"""

import argparse
import statistics

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from brevitas_multiquant import InPlaceDistillation, MultiQuantNet, calibrate, multiquantize
from brevitas_multiquant.core.grids import WEIGHT_FORMATS

TRAINING = 1437
BATCH = 64
BITS = (2, 4)


def small_cnn() -> nn.Module:
    """Stem, two convolutions in the branches, classifier: images (N, 1, 8, 8) to 10 classes."""
    layers: list[nn.Module] = []
    for inputs, channels, stride in ((1, 8, 1), (8, 16, 2), (16, 16, 1)):
        conv = nn.Conv2d(inputs, channels, 3, stride, 1, bias=False)
        layers += [conv, nn.BatchNorm2d(channels), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10))


def digits() -> tuple[Tensor, Tensor]:
    """Images (N, 1, 8, 8) in [-1, 1] and classes, those to train on first."""
    data, labels = load_digits(return_X_y=True)
    images = torch.tensor(data, dtype=torch.float32).view(-1, 1, 8, 8) / 8 - 1
    return images, torch.tensor(labels)


def train(weights: str, seed: int, steps: int) -> MultiQuantNet:
    """A network of one format, trained."""
    torch.manual_seed(seed)
    images, labels = digits()
    net = multiquantize(
        small_cnn(),
        BITS,
        weights=weights,
        profile="finn",
        branch_init="shuffle",
        input_shape=(1, 1, 8, 8),
        check=False,
    )
    calibrate(net, [images[:BATCH]])
    task = InPlaceDistillation(net)
    model = torch.optim.SGD(net.model_parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
    ranges = torch.optim.Adam(net.range_parameters(), lr=1e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(model, steps)
    for _ in range(steps):
        batch = torch.randint(TRAINING, (BATCH,))
        model.zero_grad()
        ranges.zero_grad()
        task.step(images[batch], labels[batch])
        model.step()
        ranges.step()
        schedule.step()
    return net.eval()


def top1(net: MultiQuantNet, bits: int) -> float:
    """Percent of the test images."""
    images, labels = digits()
    with torch.no_grad(), net.at_bits(bits):
        right = net(images[TRAINING:]).argmax(1) == labels[TRAINING:]
    return 100 * float(right.float().mean())


def main() -> None:
    """Train all, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=300)
    options = parser.parse_args()
    print("| weights | seeds | " + " | ".join(f"{bits} bits" for bits in BITS) + " |")
    print("|---|---|" + "---|" * len(BITS))
    for name in WEIGHT_FORMATS:
        nets = [train(name, seed, options.steps) for seed in range(options.seeds)]
        cells = []
        for bits in BITS:
            values = [top1(net, bits) for net in nets]
            cells.append(f"{statistics.mean(values):.1f} ± {statistics.stdev(values):.1f}")
        print(f"| {name} | {options.seeds} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
