"""How a network runs inside a training step: compiled, recomputed in the backward, or as it is.

Only training steps see it. Evaluation, saving and export always run the network itself.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from brevitas_multiquant import MultiQuantNet
from brevitas_multiquant.nn.compiled import compiled_by_bits

Forward = Callable[..., Any]
Forwards = Mapping[tuple[nn.Module, str], Forward]
"""A network or a part of it, and the name of a method -> what runs in that method's place."""


def branches_of(net: MultiQuantNet) -> dict[str, nn.Module]:
    """Everything that runs side by side, by name: branches, and half branches where there are."""
    branches = {f"branches.{index}": branch for index, branch in enumerate(net.branches)}
    halves = getattr(net, "halves", nn.ModuleDict())
    return branches | {f"halves.{index}": half for index, half in halves.items()}


def training_forwards(net: MultiQuantNet, compiled: bool, recompute: bool) -> Forwards:
    """The network compiled, or its branches recomputed in the backward, or both.

    A network is compiled as one graph for each bit-width, so that no layout is converted between
    stem and branches; what is recomputed is a graph for each branch and bit-width.
    """

    def wrap(forward: Forward) -> Forward:
        # Shapes never change while training.
        return compiled_by_bits(net, forward, dynamic=False) if compiled else forward

    if recompute:
        branches = branches_of(net).values()
        return {
            (branch, "forward"): recomputed(net, branch, wrap(branch.forward))
            for branch in branches
        }
    names = ("forward", "forward_with_stand_ins") if compiled else ()
    return {(net, name): wrap(getattr(net, name)) for name in names}


@contextmanager
def running_by(forwards: Forwards) -> Iterator[None]:
    """Inside the block these modules run by these forwards."""
    for (module, name), forward in forwards.items():
        setattr(module, name, forward)
    try:
        yield
    finally:
        for module, name in forwards:
            delattr(module, name)


def recomputed(net: MultiQuantNet, branch: nn.Module, forward: Forward) -> Forward:
    """A forward that keeps only its input and runs again in the backward, to the same bits.

    The second run is at the bit-width of the first, whichever is active by then, and leaves the
    running statistics of norms alone.
    """
    norms = [module for module in branch.modules() if hasattr(module, "num_batches_tracked")]

    def contexts() -> tuple[AbstractContextManager, AbstractContextManager]:
        return nullcontext(), statistics_kept(norms)

    def run(x: Tensor) -> Tensor:
        setting = net.setting

        def at_same_bits(x: Tensor) -> Tensor:
            with net.at_bits(setting):
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
