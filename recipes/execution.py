"""How branches run inside a training step: compiled, or recomputed in the backward, or as they are.

Only training steps see it. Evaluation, saving and export always run the branches themselves.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from brevitas_multiquant import MultiQuantNet

Forward = Callable[[Tensor], Tensor]


def branches_of(net: MultiQuantNet) -> dict[str, nn.Module]:
    """Everything that runs side by side, by name: branches, and half branches where there are."""
    branches = {f"branches.{index}": branch for index, branch in enumerate(net.branches)}
    halves = getattr(net, "halves", nn.ModuleDict())
    return branches | {f"halves.{index}": half for index, half in halves.items()}


def branch_forwards(net: MultiQuantNet, compiled: bool, recompute: bool) -> list[Forward] | None:
    """A forward for each branch to train with; None where each has its own."""
    if not (compiled or recompute):
        return None
    branches = branches_of(net).values()
    forwards: list[Forward] = [branch.forward for branch in branches]
    if compiled:
        # Shapes never change while training; every bit-width is compiled once.
        forwards = [torch.compile(forward, dynamic=False) for forward in forwards]
    if recompute:
        pairs = zip(branches, forwards, strict=True)
        forwards = [recomputed(net, branch, forward) for branch, forward in pairs]
    return forwards


@contextmanager
def running_by(net: nn.Module, forwards: Sequence[Forward] | None) -> Iterator[None]:
    """Inside the block the branches of the network run by these forwards."""
    if forwards is None:
        yield
        return
    assert isinstance(net, MultiQuantNet)
    branches = branches_of(net).values()
    for branch, forward in zip(branches, forwards, strict=True):
        branch.forward = forward
    try:
        yield
    finally:
        for branch in branches:
            del branch.forward


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
