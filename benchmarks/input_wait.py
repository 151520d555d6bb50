"""How long a training step waits for its images: the share of wall time, any recipe options.

Takes the options of ``recipes/train.py`` behind ``--``: ``python -m benchmarks.input_wait --steps
20 -- -c recipes/configs/cifar10_jpeg_resnet20.yaml --data-dir FOLDER``.
"""

import argparse
import tempfile
import time
from itertools import islice

import torch

from brevitas_multiquant.recipes.options.train import parse_train
from brevitas_multiquant.recipes.run.create import create_run
from brevitas_multiquant.recipes.run.loop import groups


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("recipe", nargs="+", help="options of recipes/train.py, after --")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        run = create_run(parse_train([*options.recipe, "--output", folder]))
        run.step.task.train()
        waited = total = 0.0
        batches = groups(run.train.epoch(0), run.options.execution.grad_accum_steps)
        started = time.perf_counter()
        for step, group in enumerate(islice(batches, options.steps + 1)):
            waited += time.perf_counter() - started
            run.step(group, 0, step, step)
            total += time.perf_counter() - started
            if step == 0:  # the first opens files and warms up
                waited = total = 0.0
            started = time.perf_counter()
    print(f"{options.steps} steps: {total:.1f} s, of which {waited:.3f} s waiting for images")
    print(f"a step waits {100 * waited / total:.2f}% of its time")


if __name__ == "__main__":
    main()
