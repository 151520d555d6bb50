"""Several processes that train one network: what they exchange, and how many there should be.

After every step all processes hold the same parameters, ranges and running statistics, to the bit.
The exchange is one sum over one flat tensor per step, made after the last backward: so the
bit-widths can be differentiated one after the other at the memory of one, gradients accumulate
without communication, and a step may leave bit-widths out.
"""

import os
from collections.abc import Iterable, Sequence

import psutil
import torch
import torch.distributed
from accelerate import Accelerator
from accelerate.commands.config.config_args import default_config_file, load_config_from_file
from accelerate.commands.launch import launch_command_parser
from accelerate.utils import DistributedType
from torch import Tensor, nn

from brevitas_multiquant.recipes.errors import LaunchError, OptionError

SUPPORTED = {
    kind for kind in DistributedType if kind is DistributedType.NO or kind.name.startswith("MULTI_")
}


def world_size() -> int:
    """How many processes train together."""
    return torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1


def average(tensors: Iterable[Tensor], scalars: Sequence[float]) -> list[float]:
    """Replace tensors by their mean over all processes, in place; the means of the scalars.

    Args:
        tensors: float32 or float64, of the same shapes in every process.
        scalars: one number for each process.
    """
    if world_size() == 1:
        return list(scalars)
    tensors = list(tensors)
    like = tensors[0]
    parts = [tensor.detach().reshape(-1) for tensor in tensors]
    flat = torch.cat([*parts, torch.tensor(scalars, dtype=like.dtype, device=like.device)])
    torch.distributed.all_reduce(flat)
    flat /= world_size()
    *means, last = flat.split([part.numel() for part in parts] + [len(scalars)])
    for tensor, mean in zip(tensors, means, strict=True):
        tensor.detach().copy_(mean.view_as(tensor))
    return last.tolist()


def exchanged(net: nn.Module) -> list[Tensor]:
    """What processes average after a backward: gradients, and running statistics of norms."""
    gradients = [p.grad for p in net.parameters() if p.grad is not None]
    return gradients + running_statistics(net)


def running_statistics(module: nn.Module) -> list[Tensor]:
    """Running means and variances of a norm, or of all norms of a network."""
    return [
        value
        for name, value in module.named_buffers()
        if name.endswith(("running_mean", "running_var"))
    ]


def share_from_main(net: nn.Module) -> None:
    """Give every process the main process's parameters and buffers."""
    if world_size() > 1:
        for value in net.state_dict().values():
            torch.distributed.broadcast(value, 0)


def check_launch(accelerator: Accelerator) -> None:
    """Check that what was started is what was asked for, and that the recipe can use it.

    Raises:
        LaunchError: ``accelerate launch`` started one process where more were asked for.
        OptionError: a way of training in several processes that this recipe does not have.
    """
    if accelerator.distributed_type not in SUPPORTED:
        raise OptionError(
            f"expected data parallel processes, got {accelerator.distributed_type.value}: choose "
            "multi-GPU or CPU in accelerate config, or use torchrun"
        )
    asked = processes_asked_for() if accelerator.num_processes == 1 else 1
    if asked > 1:
        raise LaunchError(
            f"accelerate launch was asked for {asked} processes and started one, as it does with "
            f"--cpu: use ACCELERATE_USE_CPU=true torchrun --nproc_per_node {asked} "
            "-m brevitas_multiquant.recipes.train, or ask for one process"
        )


def processes_asked_for() -> int:
    """How many processes the ``accelerate launch`` above was asked for; 1 if there is none."""
    if "ACCELERATE_MIXED_PRECISION" not in os.environ:
        return 1
    try:
        parent = psutil.Process().parent()
        command = parent.cmdline() if parent else []
    except psutil.Error:
        return 1
    return asked_in_command(command)


def asked_in_command(command: Sequence[str]) -> int:
    """The number of processes that a command line of Accelerate's launcher asks for.

    Example:
        >>> asked_in_command(["accelerate", "launch", "--num_processes", "2", "train.py"])
        2
        >>> asked_in_command(["bash"])
        1
    """
    for index, word in enumerate(command):
        launched = word == "launch" and command[index - 1].endswith("accelerate")
        if launched or word.endswith(("accelerate-launch", "accelerate.commands.launch")):
            args, _ = launch_command_parser().parse_known_args(command[index + 1 :])
            return args.num_processes or _asked_in_config(args.config_file)
    return 1


def _asked_in_config(path: str | None) -> int:
    path = path or str(default_config_file)
    if not os.path.isfile(path):
        return 1
    return getattr(load_config_from_file(path), "num_processes", None) or 1
