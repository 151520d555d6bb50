"""A network whose bit-widths are searched for, and then fixed, while it trains."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from brevitas_multiquant.allocation.search_task import Search
from brevitas_multiquant.core.image_task import ImageTask
from brevitas_multiquant.recipes.network.multi_branch import MultiBranch
from brevitas_multiquant.recipes.options.training import ObjectiveOptions
from brevitas_multiquant.recipes.results.bits import BITS, RATIO


@dataclass(frozen=True)
class Searched(MultiBranch):
    """A `MultiBranch` of one body with its `Search`.

    Args:
        search: of the network that is trained; a moving average has none of its own.
        options: of the search, as a checkpoint has them.
    """

    search: Search
    options: Mapping[str, Any]

    @property
    def description(self) -> str:
        """What is looked for."""
        problem = self.search.problem
        limit = f"{problem.limits[0]:.4g} {problem.unit}"
        count, profile = self.search.widths.count, self.module.config.profile
        return f"{count} bit-widths to learn within {limit}, profile {profile}"

    def task(self, criterion: nn.Module, options: ObjectiveOptions) -> Search:
        """The search, which is plain training afterwards."""
        self.search.criterion = criterion
        return self.search

    def values_of_epoch(self) -> dict[str, float]:
        """Cost over budget, and every bit-width."""
        bits = {f"{BITS}{name}": value for name, value in self.search.bits().items()}
        return {RATIO: self.search.ratio(), **bits}

    def saved_values(self) -> dict[str, Any]:
        """The options of the search, and what it found."""
        settled = self.search.settled
        found = None if settled is None else settled.to_dict()
        return {"search": dict(self.options), "settled": found}

    def save(self, path: Path, task: ImageTask | None = None) -> None:
        """Packed, once bits are whole; nothing before."""
        if self.search.settled is not None:
            super().save(path, task)
