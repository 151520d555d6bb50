"""What `test_methods` runs in two processes: one step of each method, and what it leaves.

``METHOD_RANK``: the parameters after a step in evaluation mode and float64, and those of another
step in training mode, below ``trained.``.
"""

from pathlib import Path

from torch import Tensor

from brevitas_multiquant.core.method import METHODS
from brevitas_multiquant.recipes.options.train import parse_train
from brevitas_multiquant.recipes.results.checkpoints import write_tensors
from brevitas_multiquant.recipes.run.create import create_run
from brevitas_multiquant.recipes.run.run import Run
from tests.recipes.runs import tiny


def arguments(method: str, output: Path, *more: str) -> list[str]:
    """Of a tiny run of a method; one that takes a single bit-width has 4."""
    single = METHODS[method].most_candidates == 1
    bits = ["4"] if single else ["2", "3", "4"]
    return tiny(output, "--method", method, "--bits", *bits, *more)


def after_a_step(run: Run) -> dict[str, Tensor]:
    """The parameters; norms are in evaluation mode, as those of half a batch would differ."""
    run.net.double()
    run.step.task.eval()
    batches = run.train.epoch(0)
    group = [next(batches) for _ in range(run.options.execution.grad_accum_steps)]
    run.step([(images.double(), labels) for images, labels in group], 0, 0, 0)
    return {name: value.detach().clone() for name, value in run.net.named_parameters()}


def after_training(run: Run) -> dict[str, Tensor]:
    """The whole state after one more step, in training mode."""
    run.step.task.train()
    images, labels = next(run.train.epoch(1))
    run.step([(images.double(), labels)], 1, 0, 1)
    return {f"trained.{name}": value for name, value in run.net.state_dict().items()}


def main(output: Path, start: Path) -> None:
    """A step of each method, from the networks in ``start``."""
    for method in METHODS:
        run = create_run(parse_train(arguments(method, start, "--batch-size", "8")))
        state = after_a_step(run)
        write_tensors(
            output / f"{method}_{run.accelerator.process_index}", state | after_training(run)
        )
    run.accelerator.end_training()
