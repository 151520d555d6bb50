"""Every system of docs/methods.md on one small common task: digits, a small CNN, three seeds.

    python -m benchmarks.systems --run
    python -m benchmarks.systems

1,797 images of 8 x 8 (scikit-learn), 1,347 of them to train on, a CNN of three convolutions behind
its stem, some minutes of one core for everything. A float network is trained for each seed, and all
systems start from it:

- what chooses bits has the budget of 3 bits everywhere, and the network that it gives is trained on
  with them; beside the accuracy stands what it costs, in shares of that budget;
- what switches bits at run time is trained at 2 and 4 bits, as its method says;
- Quant-Noise and the coordinate descent are steps of a 2-bit network's training, or after it.

It shows that every row of the table works from end to end and that none is broken. It ranks
nothing: differences of a few images are noise, and no system is tuned. The accuracy is that of the
last epoch on the images that are not trained on, which choose nothing.
"""

import argparse
import copy
import json
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

from benchmarks.pages import ROOT, write_between
from brevitas_multiquant import (
    MultiQuantNet,
    calibrate,
    multiquantize,
    objective_of,
    reestimate_norms,
)
from brevitas_multiquant.allocation import STRATEGIES, Budget, allocate
from brevitas_multiquant.core.method import METHODS
from brevitas_multiquant.training.code_descent import descend_codes
from brevitas_multiquant.training.quant_noise import set_quant_noise
from brevitas_multiquant.training.range_rates import scaled_rate

KEPT = ROOT / "benchmarks" / "results" / "systems"
FILE = KEPT / "results.json"
TRAINED, BATCH, SHAPE = 1347, 64, (1, 1, 8, 8)
FLOAT_EPOCHS, EPOCHS, STEPS = 15, 8, 200
LR, RANGE_LR = 0.05, 1e-3
BUDGET = Budget(uniform=3)

Result = dict[str, float]
"""What was measured -> percent, share of the budget, or seconds."""


class SmallNet(nn.Module):
    """A stem, three convolutions with norms, a classifier."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, width, 3, padding=1), nn.BatchNorm2d(width))
        self.conv1 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(2 * width)
        self.conv3 = nn.Conv2d(2 * width, 2 * width, 3, padding=1, bias=False)
        self.norm3 = nn.BatchNorm2d(2 * width)
        self.fc = nn.Linear(2 * width, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, 10) of images (N, 1, 8, 8)."""
        x = self.stem(x).relu()
        x = self.norm1(self.conv1(x)).relu()
        x = self.norm2(self.conv2(x)).relu()
        return self.fc(self.norm3(self.conv3(x)).relu().mean((2, 3)))


@dataclass(frozen=True)
class Task:
    """Images, labels, and the float network of a seed."""

    images: Tensor
    labels: Tensor
    seed: int
    model: nn.Module

    @property
    def batches(self) -> list[tuple[Tensor, Tensor]]:
        """Those to train on, in their order."""
        return list(
            zip(
                self.images[:TRAINED].split(BATCH),
                self.labels[:TRAINED].split(BATCH),
                strict=True,
            )
        )

    @torch.no_grad()
    def accuracy(self, net: nn.Module) -> float:
        """In percent, of the images that are not trained on."""
        right = net.eval()(self.images[TRAINED:]).argmax(1) == self.labels[TRAINED:]
        return 100 * right.float().mean().item()


def task_of(seed: int) -> Task:
    """The digits in the order of a seed, and the float network that learned them."""
    digits = load_digits()
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(digits.target), generator=generator)
    images = torch.tensor(digits.images, dtype=torch.float32)[order, None] / 8 - 1
    labels = torch.tensor(digits.target)[order]
    torch.manual_seed(seed)
    task = Task(images, labels, seed, SmallNet())
    optimizer = torch.optim.SGD(task.model.parameters(), 0.1, 0.9, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, FLOAT_EPOCHS)
    for _ in range(FLOAT_EPOCHS):
        for images, labels in _shuffled(task):
            optimizer.zero_grad()
            F.cross_entropy(task.model(images), labels).backward()
            optimizer.step()
        schedule.step()
    task.model.eval()
    return task


def _shuffled(task: Task) -> Any:
    order = torch.randperm(TRAINED)
    for some in order.split(BATCH):
        yield task.images[some], task.labels[some]


def train(net: MultiQuantNet, task: Task, epochs: int = EPOCHS) -> MultiQuantNet:
    """As the network's method says; the norms of every bit-width are estimated anew at the end."""
    torch.manual_seed(task.seed)
    calibrate(net, [task.images[:256]])
    objective = objective_of(net.train())
    optimizers = [torch.optim.SGD(net.model_parameters(), LR, 0.9, weight_decay=1e-4)]
    if ranges := list(net.range_parameters()):
        optimizers.append(torch.optim.Adam(ranges, RANGE_LR))
    schedules = [torch.optim.lr_scheduler.CosineAnnealingLR(one, epochs) for one in optimizers]

    def update(bits: int) -> None:
        factors = (1.0, objective.range_rate(bits))
        for optimizer, factor in zip(optimizers, factors, strict=False):
            with scaled_rate(optimizer, factor):
                optimizer.step()
        net.zero_grad()

    each = {"update": update} if objective.updates_after_each else {}
    for epoch in range(epochs):
        for step, (images, labels) in enumerate(_shuffled(task)):
            objective.at(epoch, epochs, step, task.seed)
            objective.step(images, labels, **each)
            if not each:
                update(max(net.bits))
        for schedule in schedules:
            schedule.step()
    reestimate_norms(net, task.batches, batches=4)
    return net.eval()


def allocated(strategy: str, task: Task) -> Result:
    """Bits by a strategy, then training with them."""
    trains = "steps" in STRATEGIES[strategy].options
    start = time.process_time()
    found = allocate(
        task.model,
        BUDGET,
        strategy=strategy,
        data=task.batches,
        options={"steps": STEPS} if trains else {},
        samples=TRAINED if trains else 256,
        input_shape=SHAPE,
    )
    seconds = time.process_time() - start
    net = multiquantize(task.model, found.assignment, input_shape=SHAPE, check=False)
    accuracy = task.accuracy(train(net, task))
    return {"top-1": accuracy, "of the budget": found.cost / found.budget, "seconds": seconds}


def accurate(task: Task) -> Result:
    """The cheapest that loses no more than two percent before training, then training."""
    found = allocate(
        task.model,
        strategy="sensitivity",
        accuracy_drop=0.02,
        data=task.batches,
        samples=512,
        input_shape=SHAPE,
    )
    net = multiquantize(task.model, found.assignment, input_shape=SHAPE, check=False)
    limit = allocate(task.model, BUDGET, strategy="uniform", input_shape=SHAPE).budget
    return {"top-1": task.accuracy(train(net, task)), "of the budget": found.cost / limit}


def switching(method: str, task: Task) -> Result:
    """One network for 2 and 4 bits."""
    net = multiquantize(task.model, [2, 4], method=method, input_shape=SHAPE, check=False)
    train(net, task)
    found = {}
    for bits in net.bits:
        with net.at_bits(bits):
            found[f"top-1, {bits} bits"] = task.accuracy(net)
    return found


def searched_supernet(task: Task) -> Result:
    """Bits of a network that was trained for any of 2, 3 and 4; it runs at them as it is."""
    net = multiquantize(task.model, [2, 3, 4], method="bit_mixer", input_shape=SHAPE, check=False)
    train(net, task)
    start = time.process_time()
    found = allocate(net, BUDGET, strategy="supernet", data=task.batches, samples=256)
    seconds = time.process_time() - start
    with net.at_bits(found.assignment):
        accuracy = task.accuracy(net)
    return {"top-1": accuracy, "of the budget": found.cost / found.budget, "seconds": seconds}


def of_two_bits(task: Task, noise: float | None = None) -> MultiQuantNet:
    """An individual network of 2 bits, trained; all weights quantized, or a random share."""
    net = multiquantize(task.model, [2], method="individual", input_shape=SHAPE, check=False)
    set_quant_noise(net, noise)
    return train(net, task)


def noisy(task: Task) -> Result:
    """A random half of the weights quantized in each step."""
    return {"top-1, 2 bits": task.accuracy(of_two_bits(task, noise=0.5))}


def plain(task: Task) -> Result:
    """All of them, the baseline of the two others."""
    return {"top-1, 2 bits": task.accuracy(of_two_bits(task))}


def descended(task: Task) -> Result:
    """Codes changed one by one: of the network without training, and of the trained one."""
    images = task.batches[:4]
    untrained = multiquantize(task.model, [2], method="individual", input_shape=SHAPE, check=False)
    calibrate(untrained, [task.images[:256]])
    found: Result = {}
    for name, net in (("untrained", untrained), ("trained", of_two_bits(task))):
        reestimate_norms(net.eval(), images, batches=4)
        found[f"{name}, before"] = task.accuracy(net)
        layers = descend_codes(net, images, batches=4).values()
        reestimate_norms(net, images, batches=4)
        found[f"{name}, after"] = task.accuracy(net)
        found[f"{name}, error left"] = sum(one.after for one in layers) / max(
            sum(one.before for one in layers), 1e-12
        )
    return found


def unquantized(task: Task) -> Result:
    """The float network."""
    return {"top-1": task.accuracy(copy.deepcopy(task.model))}


SYSTEMS: dict[str, Callable[[Task], Result]] = {
    "float": unquantized,
    **{name: partial(allocated, name) for name, row in STRATEGIES.items() if not row.run_time},
    "sensitivity, 2% lost": accurate,
    "supernet": searched_supernet,
    **{name: partial(switching, name) for name in METHODS if name != "individual"},
    "individual": plain,
    "quant-noise": noisy,
    "coordinate descent": descended,
}
"""Row of docs/methods.md -> what measures it."""


def kept() -> dict[str, dict[str, Result]]:
    """System -> seed -> what was measured."""
    found: dict[str, dict[str, Result]] = json.loads(FILE.read_text()) if FILE.is_file() else {}
    return found


def keep(name: str, seed: int, result: Result) -> None:
    """Add what was measured."""
    found = kept()
    found.setdefault(name, {})[str(seed)] = result
    FILE.write_text(json.dumps(found, indent=1) + "\n")


def results(seeds: list[int]) -> Mapping[str, list[Result]]:
    """What is kept, by system."""
    found = kept()
    of_seeds = {name: [found.get(name, {}).get(str(seed)) for seed in seeds] for name in SYSTEMS}
    return {name: [one for one in of if one] for name, of in of_seeds.items()}


def table(found: Mapping[str, list[Result]]) -> str:
    """Markdown: a line for each system, with mean and spread of the seeds."""
    lines = ["| system | seeds | measured |", "|---|---|---|"]
    for name, runs in found.items():
        if runs:
            cells = (f"{key} {_spread([run[key] for run in runs])}" for key in runs[0])
            lines.append(f"| {name} | {len(runs)} | {'; '.join(cells)} |")
    return "\n".join(lines)


def _spread(values: list[float]) -> str:
    mean = f"{statistics.mean(values):.2f}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.2f}"


def main() -> None:
    """Make the results that are missing where asked to; write the table into docs/methods.md."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", action="store_true", help="make the results that are missing")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--systems", nargs="+", choices=SYSTEMS, default=list(SYSTEMS))
    options = parser.parse_args()
    KEPT.mkdir(parents=True, exist_ok=True)
    for seed in options.seeds if options.run else []:
        missing = [name for name in options.systems if str(seed) not in kept().get(name, {})]
        task = task_of(seed) if missing else None
        for name in missing:
            assert task is not None
            start = time.process_time()
            found = SYSTEMS[name](task)
            print(f"{name}, seed {seed}: {found}, {time.process_time() - start:.0f} CPU s")
            keep(name, seed, found)
    text = table(results(options.seeds))
    print(text)
    write_between(ROOT / "docs" / "methods.md", "systems", text)


if __name__ == "__main__":
    main()
