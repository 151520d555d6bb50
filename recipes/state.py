"""Networks and optimizers to tensors by name, and back."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from recipes.checkpoints import Checkpoint
from recipes.errors import CheckpointError


def network_tensors(prefix: str, net: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers, each name after ``prefix``."""
    return {f"{prefix}{name}": value for name, value in net.state_dict().items()}


def restore_network(net: nn.Module, saved: Checkpoint, prefix: str) -> None:
    """Load a network; before its optimizers are made, as loading may replace parameters.

    Raises:
        CheckpointError: it is the state of another network.
    """
    try:
        net.load_state_dict(saved.below(prefix))
    except RuntimeError as error:
        raise CheckpointError(
            "--resume: the checkpoint holds another network than the options describe; resume with "
            f"the options of that run: {error}"
        ) from None


def optimizer_tensors(optimizers: Sequence[Optimizer]) -> dict[str, Tensor]:
    """What optimizers remember of each parameter, by name: ``optimizer0.12.momentum_buffer``."""
    return {
        f"optimizer{index}.{parameter}.{name}": value
        for index, optimizer in enumerate(optimizers)
        for parameter, values in optimizer.state_dict()["state"].items()
        for name, value in values.items()
        if value is not None
    }


def restore_optimizers(optimizers: Sequence[Optimizer], saved: Checkpoint) -> None:
    """Load the optimizers of the restored network."""
    pairs = zip(optimizers, saved.values["param_groups"], strict=True)
    for index, (optimizer, groups) in enumerate(pairs):
        state: dict[int, dict[str, Any]] = {}
        for name, value in saved.below(f"optimizer{index}.").items():
            parameter, key = name.split(".")
            state.setdefault(int(parameter), {})[key] = value
        optimizer.load_state_dict({"state": state, "param_groups": groups})
