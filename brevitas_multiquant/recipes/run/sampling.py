"""Steps that run some of the bit-widths: which ones.

The largest bit-width, which teaches, and the smallest, which has least in common with it, run in
every step. For those between that do not run, branches of the largest stand in.
"""

from collections.abc import Sequence

import torch

ALWAYS = 2
"""Bit-widths that run in every step: the smallest and the largest."""


def sampled_bits(bits: Sequence[int], count: float, seed: int) -> tuple[int, ...]:
    """The smallest bit-width, the largest, and some of those between, each as likely as another.

    Args:
        bits: three or more, to choose from.
        count: how many on average; with 2.4 a third one runs in four steps of ten.
        seed: of the choice.

    Example:
        >>> sampled_bits([2, 4, 6, 8], 4, seed=0)
        (2, 4, 6, 8)
        >>> len(sampled_bits([2, 4, 6, 8], 3, seed=0))
        3
    """
    smallest, *between, largest = sorted(bits)
    generator = torch.Generator().manual_seed(seed)
    whole, part = divmod(count - ALWAYS, 1)
    more = int(whole) + int(torch.rand((), generator=generator).item() < part)
    chosen = torch.randperm(len(between), generator=generator)[:more].tolist()
    return tuple(sorted([smallest, *(between[index] for index in chosen), largest]))
