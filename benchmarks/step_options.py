"""What the recipe's execution options cost and save: CPU time and memory of a step, interleaved.

    python -m benchmarks.step_options cifar_resnet20 --batch-size 32 --img-size 32

One thread. For each option, the median over pairs of the CPU time of some steps over that of the
plain steps that ran just before them, and the megabytes that autograd keeps for the backward of
the largest bit-width, each storage counted once, parameters left out.
"""

import argparse
import statistics
import tempfile

import torch
from torch import Tensor

from benchmarks.measure import cpu_seconds
from brevitas_multiquant.recipes.network.training_forwards import running_by
from brevitas_multiquant.recipes.options.train import parse_train
from brevitas_multiquant.recipes.run.create import create_run
from brevitas_multiquant.recipes.run.memory import keep_freed_memory
from brevitas_multiquant.recipes.run.run import Run
from brevitas_multiquant.recipes.run.step import Batch

OPTIONS = {
    "plain": [],
    "--no-channels-last": ["--no-channels-last"],
    "--recompute": ["--recompute"],
    "--bits-per-step 2.4": ["--bits-per-step", "2.4"],
    "--compile": ["--compile"],
}

STEPS = 10
"""Timed together, as steps that sample their bit-widths differ."""


def create(options: argparse.Namespace, more: list[str], output: str) -> Run:
    """A run on random images that writes nothing."""
    argv = ["--dataset", "synthetic", "--num-classes", "10", "--device", "cpu", "--output", output]
    argv += ["--model", options.model, "--bits", *map(str, options.bits), *more]
    argv += ["--batch-size", str(options.batch_size), "--img-size", str(options.img_size)]
    return create_run(parse_train([*argv, "--subset", str(options.batch_size)]))


def steps_seconds(run: Run, batch: Batch) -> float:
    """CPU time of `STEPS` steps."""
    run.step.task.train()
    return cpu_seconds(lambda: [run.step([batch], 0, step, 0) for step in range(STEPS)])


def kept_megabytes(run: Run, batch: Batch) -> float:
    """What a forward at the largest bit-width keeps for its backward."""
    run.step.task.train()
    own = {parameter.untyped_storage().data_ptr() for parameter in run.net.parameters()}
    kept: dict[int, int] = {}
    alive: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
            alive.append(tensor)
        return tensor

    images, _ = run.step._augment(*batch, epoch=0)
    hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
    with hooks, running_by(run.step.forwards):
        run.net(images)
    return sum(kept.values()) / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", default="cifar_resnet20")
    parser.add_argument("--bits", type=int, nargs="+", default=[2, 4, 6, 8])
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--img-size", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--options", nargs="+", choices=OPTIONS, default=list(OPTIONS)[1:4])
    options = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()  # as the recipe does
    with tempfile.TemporaryDirectory() as output:
        plain = create(options, [], output)
        batch = next(plain.train.epoch(0))
        print(f"plain: 1.00, {kept_megabytes(plain, batch):.1f} MB kept for the backward")
        for name in options.options:
            run = create(options, OPTIONS[name], output)
            pairs = [
                (steps_seconds(plain, batch), steps_seconds(run, batch))
                for _ in range(options.repeats + 1)
            ]
            ratio = statistics.median(b / a for a, b in pairs[1:])
            # A compiler decides itself what to keep.
            kept = "" if name == "--compile" else f", {kept_megabytes(run, batch):.1f} MB kept"
            print(f"{name}: {ratio:.2f}{kept}", flush=True)


if __name__ == "__main__":
    main()
