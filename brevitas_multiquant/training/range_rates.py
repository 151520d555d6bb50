"""Rules for the learning rate of ranges where the optimizers step after each bit-width."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.optim import Optimizer

from brevitas_multiquant.core.devices import in_fp64


def gap_rate(gap: int) -> float:
    """Of a bit-width that is ``gap`` bits below the largest: eta (Double Rounding, 2502.01199).

    10 ** (-gap / 2) for an even gap, 5 * 10 ** (-(gap + 1) / 2) for an odd one.

    Args:
        gap: from 0.

    Example:
        >>> [gap_rate(gap) for gap in range(5)]
        [1.0, 0.5, 0.1, 0.05, 0.01]
    """
    return 5 / 10 ** ((gap + 1) // 2) if gap % 2 else 1 / 10 ** (gap // 2)


def adaptive_rate(gap: int, gradients: Iterable[Tensor]) -> float:
    """Adaptive learning rate scaling of Double Rounding (2502.01199).

    eta * (1 - mean of min(abs(g), 1)) with eta of `gap_rate` and the mean over the gradients g of
    all ranges that the bit-width has: small bit-widths move the shared scales less, and every one
    less where its gradients are large. It is taken as a factor of the scheduled rate.

    Args:
        gap: bits between the largest bit-width and the one that ran.
        gradients: of the ranges.

    Returns:
        In [0, 1].

    Example:
        >>> round(adaptive_rate(2, [torch.tensor(0.5), torch.tensor(-3.0)]), 6)
        0.025
    """
    sizes = [gradient.detach().abs().clamp(max=1).reshape(-1) for gradient in gradients]
    mean = in_fp64(torch.cat(sizes)).mean().item() if sizes else 0.0
    return gap_rate(gap) * (1 - mean)


RangeRate = Callable[[int, Iterable[Tensor]], float]
"""Bits below the largest bit-width, gradients of ranges -> factor of the scheduled rate."""

RANGE_RATES: dict[str, RangeRate] = {
    "as scheduled": lambda gap, gradients: 1.0,
    "adaptive": adaptive_rate,
}
"""Rules by name."""


@contextmanager
def scaled_rate(optimizer: Optimizer, factor: float) -> Iterator[None]:
    """Inside the block an optimizer has this part of its learning rate.

    Example:
        >>> optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.5)
        >>> with scaled_rate(optimizer, 0.1):
        ...     optimizer.param_groups[0]["lr"]
        0.05
        >>> optimizer.param_groups[0]["lr"]
        0.5
    """
    before = [group["lr"] for group in optimizer.param_groups]
    for group in optimizer.param_groups:
        group["lr"] = group["lr"] * factor
    try:
        yield
    finally:
        for group, rate in zip(optimizer.param_groups, before, strict=True):
            group["lr"] = rate
