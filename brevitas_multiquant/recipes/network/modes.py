"""Networks in evaluation mode for a while."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from brevitas_multiquant.recipes.network.protocols import RunsAtBits
from brevitas_multiquant.training.calibrate import only_training


@contextmanager
def evaluating(net: nn.Module | RunsAtBits) -> Iterator[None]:
    """Inside the block a network evaluates; behind it each module has its own mode again.

    Example:
        >>> net = nn.Sequential(nn.Dropout(), nn.BatchNorm2d(1).eval())
        >>> with evaluating(net):
        ...     net[0].training
        False
        >>> net[0].training, net[1].training
        (True, False)
    """
    itself = next(iter(net.modules()))
    with only_training(itself, ()):
        yield
