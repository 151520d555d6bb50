"""What torch does between two integers, as a table of thresholds that is equal to the bit.

Between an accumulator and the next code stand factors, norms, activation and rounding, all of them
monotone, also as fp32 computes them. So the code that torch gives is a staircase over the integers,
and a hardware table that lists its steps gives the same code for every integer: found by bisection
of torch's own function, not by algebra on its constants, which would round elsewhere.

Integers are halved as integers: floats end at 2**24, above which the middle of two neighbours is
one of them. Torch's function gets them as the fp32 numbers that it would compute with.
"""

from collections.abc import Callable

import torch
from torch import Tensor

Staircase = Callable[[Tensor], Tensor]
"""Integers (n, C) in fp32, a row per trial and a column per channel -> codes, same shape."""


def directions(codes: Staircase, lowest: int, highest: int, channels: int) -> Tensor:
    """1 where the staircase of a channel rises or is level, -1 where it falls.

    Args:
        codes: torch's function.
        lowest: smallest integer that can occur.
        highest: largest integer that can occur.
        channels: C.
    """
    ends = torch.tensor([[lowest], [highest]]).expand(2, channels)
    first, last = codes(ends.float().contiguous())
    return torch.where(last < first, -1.0, 1.0)


def threshold_table(
    codes: Staircase, lowest: int, highest: int, channels: int, code_range: tuple[int, int]
) -> Tensor:
    """The smallest integer at which each code is reached.

    Args:
        codes: torch's function; does not fall in any channel.
        lowest: smallest integer that can occur.
        highest: largest integer that can occur.
        channels: C.
        code_range: smallest and largest code of the quantizer.

    Returns:
        (C, levels) of integers, in fp32 where that holds all of them, else in fp64: the code of an
        integer a is the smallest code plus the number of entries that are at most a. A code that
        cannot occur has the entry ``highest + 1``.

    Example:
        >>> halves = lambda a: (a / 2).floor().clamp(0, 3)
        >>> threshold_table(halves, -4, 9, 1, (0, 3))
        tensor([[2., 4., 6.]])
    """
    first_code, last_code = code_range
    wanted = torch.arange(first_code + 1, last_code + 1).unsqueeze(1)
    below = torch.full((len(wanted), channels), lowest - 1)  # not reached yet
    reached = torch.full_like(below, highest + 1)
    while bool((searching := reached - below > 1).any()):
        middle = (below + reached).div(2, rounding_mode="floor")
        at_least = codes(middle.float()) >= wanted
        reached = torch.where(searching & at_least, middle, reached)
        below = torch.where(searching & ~at_least, middle, below)
    table = reached.T.contiguous()
    return table.float() if torch.equal(table.float().long(), table) else table.double()
