"""What `test_ranks` runs in two processes: resume the run, and write what this rank holds.

``top1_RANK``: accuracy and number of images of the evaluation. ``gradients_RANK``: of one step in
evaluation mode and float64. ``state_RANK``: the network after an epoch of training.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from brevitas_multiquant.recipes.evaluate import top1
from brevitas_multiquant.recipes.options.train import parse_train
from brevitas_multiquant.recipes.results.checkpoints import write_tensors
from brevitas_multiquant.recipes.run.create import create_run
from brevitas_multiquant.recipes.run.interrupt import StopRequest
from brevitas_multiquant.recipes.run.loop import train_epoch
from brevitas_multiquant.recipes.run.run import Run, save_checkpoint


def gradients(run: Run) -> dict[str, Tensor]:
    """Gradient of every parameter after one step on the first batches, norms in evaluation mode."""
    run.net.double()
    run.step.task.eval()
    batches = run.train.epoch(0)
    group = [next(batches) for _ in range(run.options.execution.grad_accum_steps)]
    run.step([(images.double(), labels) for images, labels in group], 0, 0, 0)
    return {name: parameter.grad for name, parameter in run.net.named_parameters()}


def evaluation(run: Run) -> dict[str, Tensor]:
    """Accuracy over all processes, and how many images they counted together."""
    accuracy = top1(run.net, run.val, run.bits, run.accelerator)
    mine = torch.tensor(sum(len(labels) for _, labels in run.val))
    return {
        "top1": torch.tensor(list(accuracy.values()), dtype=torch.float64),
        "images": run.accelerator.reduce(mine, "sum"),
    }


def main(output: Path, argv: Sequence[str]) -> None:
    """Write the files of this rank to ``output``."""
    args = parse_train(argv)
    run = create_run(args)
    rank = run.accelerator.process_index
    write_tensors(output / f"top1_{rank}", evaluation(run))
    write_tensors(output / f"gradients_{rank}", gradients(run))
    run = create_run(args)
    train_epoch(run, StopRequest(), tqdm(disable=True))
    write_tensors(output / f"state_{rank}", run.net.state_dict())
    save_checkpoint(run)
    run.accelerator.end_training()
