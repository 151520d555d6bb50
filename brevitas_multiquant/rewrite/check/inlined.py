"""Modules of a model that its trace took apart: their own code is gone, and what it did beside."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from brevitas_multiquant.quant.layers import WEIGHTED
from brevitas_multiquant.rewrite.check.behaviour import (
    State,
    changed,
    decides_by_mode,
    draws_unseeded,
    modules_that_draw,
    reads_its_mode,
)
from brevitas_multiquant.rewrite.graph.kinds import is_norm

LIBRARIES = ("timm", "torchvision")
"""Their models decide by their mode for auxiliary classifiers alone; one run shows as much."""


class Inlined:
    """The modules of a model that have no counterpart of their type in the network.

    Args:
        theirs: the model.
        ours: one branch of the network, between stem and head.
    """

    def __init__(self, theirs: nn.Module, ours: nn.Module) -> None:
        self._model = theirs
        kinds: dict[str, set[type]] = {}
        for path, module in ours.named_modules():
            _part, _, name = path.partition(".")
            for own in (name, name.partition(".")[2]):  # beside the name of what cannot be traced
                kinds.setdefault(own, set()).add(type(module))
        self._modules = {
            name: module
            for name, module in theirs.named_modules()
            if type(module) not in kinds.get(name, ()) and not _is_replaced(module)
        }

    def may_decide(self) -> bool:
        """Whether a user's code that is gone decides by its mode, or keeps a feature."""
        return any(
            decides_by_mode(module)
            or any(isinstance(value, torch.Tensor) for value in vars(module).values())
            for module in self._modules.values()
            if type(module).__module__.partition(".")[0] not in LIBRARIES
        )

    def lost(self, run: Callable[[], Any], device: torch.device) -> dict[str, str]:
        """Which of them draw random numbers; if none does, which of them read their mode."""
        drawing = self._drawing(run, device)
        reading = [name for name, module in self._modules.items() if reads_its_mode(module)]
        return drawing or dict.fromkeys(reading, "reads self.training")

    def suspects(self, run: Callable[[], Any], device: torch.device) -> dict[str, str]:
        """Which of them may lose something, where no seed makes two runs comparable."""
        deciding = [name for name, module in self._modules.items() if decides_by_mode(module)]
        unseeded = [name for name, module in self._modules.items() if draws_unseeded(module)]
        found = dict.fromkeys(deciding, "decides by self.training")
        found |= dict.fromkeys(unseeded, "depends on chance or time, which no seed sets")
        return found | self._drawing(run, device)

    def _drawing(self, run: Callable[[], Any], device: torch.device) -> dict[str, str]:
        drawing = modules_that_draw(self._model, run, device) & self._modules.keys()
        return dict.fromkeys(sorted(drawing), "draws random numbers of its own while it trains")

    def changed(self, before: State, after: State) -> dict[str, str]:
        """Which of them changed something of their own."""
        return {
            name: f"changes its own {', '.join(keys)} (in each branch, at every bit-width)"
            for name, keys in changed(before, after).items()
            if name in self._modules
        }


def _is_replaced(module: nn.Module) -> bool:
    """Layers and norms have a counterpart of another type."""
    return isinstance(module, WEIGHTED) or is_norm(module)
