"""How a network's parts run inside a training step: compiled, recomputed, or as they are.

Only training steps see it. Evaluation, saving and export always run the parts themselves.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from brevitas_multiquant import MultiQuantNet

Forward = Callable[[Tensor], Tensor]
PartForwards = Mapping[nn.Module, Forward]
"""Part of a network -> what runs in the place of its own forward."""


def branches_of(net: MultiQuantNet) -> dict[str, nn.Module]:
    """Everything that runs side by side, by name: branches, and half branches where there are."""
    branches = {f"branches.{index}": branch for index, branch in enumerate(net.branches)}
    halves = getattr(net, "halves", nn.ModuleDict())
    return branches | {f"halves.{index}": half for index, half in halves.items()}


def part_forwards(net: MultiQuantNet, compiled: bool, recompute: bool) -> PartForwards:
    """What to train with: stem, branches and head compiled, branches recomputed in the backward."""
    branches = list(branches_of(net).values())
    forwards: dict[nn.Module, Forward] = {}
    if compiled:
        # Shapes never change while training; every bit-width is compiled once.
        parts = (net.stem, *branches, net.head)
        forwards = {part: torch.compile(part.forward, dynamic=False) for part in parts}
    if recompute:
        own = {branch: forwards.get(branch, branch.forward) for branch in branches}
        forwards |= {branch: recomputed(net, branch, own[branch]) for branch in branches}
    return forwards


@contextmanager
def running_by(forwards: PartForwards) -> Iterator[None]:
    """Inside the block the parts of a network run by these forwards."""
    for part, forward in forwards.items():
        part.forward = forward
    try:
        yield
    finally:
        for part in forwards:
            del part.forward


def recomputed(net: MultiQuantNet, branch: nn.Module, forward: Forward) -> Forward:
    """A forward that keeps only its input and runs again in the backward, to the same bits.

    The second run is at the bit-width of the first, whichever is active by then, and leaves the
    running statistics of norms alone.
    """
    norms = [module for module in branch.modules() if hasattr(module, "num_batches_tracked")]

    def contexts() -> tuple[AbstractContextManager, AbstractContextManager]:
        return nullcontext(), statistics_kept(norms)

    def run(x: Tensor) -> Tensor:
        bits = net.active_bits

        def at_same_bits(x: Tensor) -> Tensor:
            with net.at_bits(bits):
                return forward(x)

        return checkpoint(at_same_bits, x, use_reentrant=False, context_fn=contexts)

    return run


@contextmanager
def statistics_kept(norms: Sequence[Any]) -> Iterator[None]:
    """Inside the block norms in training mode do not change their running statistics.

    With a momentum of 0 they compute, and keep for the backward, all that they did at first.
    """
    before = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for norm, (momentum, count) in zip(norms, before, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, count
