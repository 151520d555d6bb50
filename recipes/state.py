"""What a run needs to go on where it stopped, in one safetensors file."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from recipes.errors import MissingFileError, TrainingError

STATE_FILE = "training_state.safetensors"


def write_tensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None
) -> None:
    """Write a safetensors file that replaces a former one at once."""
    # Copies, because safetensors refuses tensors that share memory.
    copies = {
        name: value.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, value in tensors.items()
    }
    aside = path.with_suffix(".partial")
    save_file(copies, aside, metadata)
    os.replace(aside, path)


def save_state(
    path: Path, net: nn.Module, optimizers: Sequence[Optimizer], progress: Mapping[str, Any]
) -> None:
    """Write all that a resumed run needs into one file."""
    tensors = {f"net.{name}": value for name, value in net.state_dict().items()}
    groups = []
    for index, optimizer in enumerate(optimizers):
        state = optimizer.state_dict()
        groups.append(state["param_groups"])
        for parameter, values in state["state"].items():
            for name, value in values.items():
                if value is not None:
                    tensors[f"optimizer{index}.{parameter}.{name}"] = value
    metadata = {"progress": json.dumps(dict(progress)), "param_groups": json.dumps(groups)}
    write_tensors(path, tensors, metadata)


@dataclass(frozen=True)
class SavedState:
    """A training state read back: tensors by name, param groups of each optimizer, progress."""

    path: Path
    tensors: dict[str, Tensor]
    param_groups: list[list[dict[str, Any]]]
    progress: dict[str, Any]

    @classmethod
    def read(cls, path: Path) -> "SavedState":
        """What `save_state` wrote.

        Raises:
            MissingFileError: there is no such file.
        """
        if not path.is_file():
            raise MissingFileError(f"--resume: expected a training state at {path}, found none")
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            metadata = file.metadata()
        groups, progress = (json.loads(metadata[key]) for key in ("param_groups", "progress"))
        return cls(path, tensors, groups, progress)

    def below(self, prefix: str) -> dict[str, Tensor]:
        """The tensors whose names start with ``prefix``, without it."""
        named = self.tensors.items()
        return {k.removeprefix(prefix): v for k, v in named if k.startswith(prefix)}

    def restore_network(self, net: nn.Module) -> None:
        """Load the network; before its optimizers are made, as loading may replace parameters.

        Raises:
            TrainingError: it is the state of another network.
        """
        try:
            net.load_state_dict(self.below("net."))
        except RuntimeError as error:
            raise TrainingError(
                f"--resume: {self.path} holds another network than the options describe; resume "
                f"with the options of that run: {error}"
            ) from None

    def restore_optimizers(self, optimizers: Sequence[Optimizer]) -> None:
        """Load the optimizers of the restored network."""
        pairs = zip(optimizers, self.param_groups, strict=True)
        for index, (optimizer, groups) in enumerate(pairs):
            state: dict[int, dict[str, Tensor]] = {}
            for name, value in self.below(f"optimizer{index}.").items():
                parameter, key = name.split(".")
                state.setdefault(int(parameter), {})[key] = value
            optimizer.load_state_dict({"state": state, "param_groups": groups})
