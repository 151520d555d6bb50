"""Steps that run some of the bit-widths: which ones, and norms that keep up all the same.

The largest bit-width, which teaches, and the smallest, which has least in common with it, run in
every step. For those between that do not run, branches of the largest stand in.
"""

from collections.abc import Iterator, Sequence

import torch
from torch.nn.modules.batchnorm import _BatchNorm

from brevitas_multiquant import MultiQuantNet
from brevitas_multiquant.nn.switchable import Switchable

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


def quicken_norms(net: MultiQuantNet, count: float) -> None:
    """Let running statistics of sampled bit-widths forget as fast, in steps of the run, as others.

    One that runs in a share p of the steps gets the momentum 1 - (1 - m)**(1 / p) in place of m;
    with m itself its statistics would be those of a network many steps ago.

    Args:
        net: to be trained with `sampled_bits`; its norms are changed.
        count: as in `sampled_bits`.
    """
    _, *between, _ = net.bits
    share = (count - ALWAYS) / len(between)
    for norm in _norms_of(net, between):
        if norm.momentum is not None:
            norm.momentum = 1 - (1 - norm.momentum) ** (1 / share)


def _norms_of(net: MultiQuantNet, bits: Sequence[int]) -> Iterator[_BatchNorm]:
    names = {str(bit) for bit in bits}
    for module in net.modules():
        if isinstance(module, Switchable):
            of_bits = (member for name, member in module.items() if name in names)
            yield from (member for member in of_bits if isinstance(member, _BatchNorm))
