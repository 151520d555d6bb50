"""Networks and optimizers to tensors by name, and back."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from brevitas_multiquant.recipes.errors import CheckpointError
from brevitas_multiquant.recipes.results.checkpoints import Checkpoint


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
        differences = differences_between(net.state_dict(), saved.below(prefix))
        raise CheckpointError(
            "--resume: the checkpoint holds another network than the options and the data set "
            f"describe: {differences or error}.\n"
            "Resume with the options and the data set of that run"
        ) from None


def differences_between(expected: Mapping[str, Tensor], got: Mapping[str, Any]) -> str:
    """What keeps tensors from being loaded, in a few words; empty where nothing does.

    Example:
        >>> import torch
        >>> differences_between({"w": torch.zeros(2), "b": torch.zeros(1)}, {"w": torch.zeros(3)})
        'b is missing; w has the shape (3,) instead of (2,)'
    """
    missing = sorted(expected.keys() - got.keys())
    unknown = sorted(got.keys() - expected.keys())
    others = [
        f"{name} has the shape {tuple(got[name].shape)} instead of {tuple(value.shape)}"
        for name, value in expected.items()
        if name in got and got[name].shape != value.shape
    ]
    found = [_few(missing, "is missing"), _few(unknown, "is not in the model"), _few(others, "")]
    return "; ".join(text for text in found if text)


def _few(names: Sequence[str], what: str) -> str:
    """The first of some names, and how many more there are."""
    if not names:
        return ""
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return " ".join(f"{names[0]} {what}".split()) + more


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
    """Load what the optimizers of the restored network remember.

    Their settings stay as the options have them, which a resumed run may change.
    """
    pairs = zip(optimizers, saved.values["param_groups"], strict=True)
    for index, (optimizer, groups) in enumerate(pairs):
        state: dict[int, dict[str, Any]] = {}
        for name, value in saved.below(f"optimizer{index}.").items():
            parameter, key = name.split(".")
            state.setdefault(int(parameter), {})[key] = value
        own = optimizer.state_dict()["param_groups"]
        groups = [{**mine, "lr": before["lr"]} for mine, before in zip(own, groups, strict=True)]
        optimizer.load_state_dict({"state": state, "param_groups": groups})
