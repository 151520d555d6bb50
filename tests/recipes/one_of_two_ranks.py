"""What `test_ranks` starts twice with torchrun: resume the run, and write what this rank holds.

In evaluation mode one step, whose gradients go to ``gradients_RANK``; then one epoch of training,
after which the whole state of the network goes to ``state_RANK``.
"""

import sys
from pathlib import Path

from torch import Tensor
from tqdm import tqdm

from recipes import train
from recipes.options import parse_train
from recipes.state import write_tensors


def gradients(run: train.Run) -> dict[str, Tensor]:
    """Gradient of every parameter after one step on the first batch, norms in evaluation mode."""
    run.task.eval()
    train.train_step(run, *next(iter(run.train)))
    return {name: parameter.grad for name, parameter in run.net.named_parameters()}


def main(output: Path, argv: list[str]) -> None:
    """Write the files of this rank to ``output``."""
    run = train.create_run(parse_train(argv))
    rank = run.accelerator.process_index
    write_tensors(output / f"gradients_{rank}", gradients(run))
    train.train_epoch(run, 0, tqdm(disable=True))
    write_tensors(output / f"state_{rank}", run.net.state_dict())
    run.accelerator.end_training()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
