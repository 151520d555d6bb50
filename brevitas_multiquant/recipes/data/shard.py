"""One process's part of the data."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Shard:
    """Which part of each batch this process computes, and where."""

    rank: int = 0
    world: int = 1
    device: torch.device | str = "cpu"
