"""What torch does between two integers, as a table of thresholds that is equal to the bit.

Between an accumulator and the next code stand factors, norms, activation and rounding, all of them
monotone, also as fp32 computes them. So the code that torch gives is a staircase over the integers,
and a hardware table that lists its steps gives the same code for every integer: found by bisection
of torch's own function, not by algebra on its constants, which would round elsewhere.

Integers are halved as integers: floats end at 2**24, above which the middle of two neighbours is
one of them. Torch's function gets them as the fp32 numbers that it would compute with.

Files and FINN keep thresholds in fp32. Where sums can pass 2**24, torch's own are rounded, in an
order that is the executor's; hardware adds exactly. A table for it takes a sum as the next fp32
number below (`fp32_table`): such a staircase has its steps at fp32 numbers, so that no entry is
rounded, and it is torch's own wherever torch adds exactly.
"""

from collections.abc import Callable

import torch
from torch import Tensor

Staircase = Callable[[Tensor], Tensor]
"""Integers (n, C) in fp32, a row per trial and a column per channel -> codes, same shape."""

CodeRange = tuple[int, int]
"""Smallest and largest code."""


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


def rounded_down(integers: Tensor) -> Tensor:
    """The largest fp32 numbers that are no larger.

    Example:
        >>> rounded_down(torch.tensor([5, 2**24 + 1, 2**24 + 3, -(2**24) - 1])).long().tolist()
        [5, 16777216, 16777218, -16777218]
    """
    nearest = integers.float()
    below = torch.nextafter(nearest, torch.full_like(nearest, -torch.inf))
    return torch.where(nearest.long() > integers, below, nearest)


def fp32_table(
    codes: Staircase, lowest: int, highest: int, channels: int, code_range: CodeRange
) -> Tensor:
    """A `threshold_table` in fp32, whatever the sums: they count as `rounded_down`.

    Example:
        >>> every_third = lambda a: (a / 3).floor().clamp(0, 3) - (a < 0).float()
        >>> fp32_table(every_third, -(2**25), 2**25 + 1, 1, (-1, 3))
        tensor([[0., 3., 6., 9.]])
        >>> fp32_table(lambda a: 0 * a, 0, 2**25 + 1, 1, (0, 1)).long()
        tensor([[33554436]])
    """
    table = threshold_table(codes, lowest, highest, channels, code_range, rounded_down).long()
    # entries at the ends of the range: below all integers, and above all of them
    return torch.where(table > highest, -rounded_down(-table), rounded_down(table))


def threshold_table(
    codes: Staircase,
    lowest: int,
    highest: int,
    channels: int,
    code_range: CodeRange,
    to_fp32: Callable[[Tensor], Tensor] = Tensor.float,
) -> Tensor:
    """The smallest integer at which each code is reached.

    Args:
        codes: torch's function; does not fall in any channel.
        lowest: smallest integer that can occur.
        highest: largest integer that can occur.
        channels: C.
        code_range: smallest and largest code of the quantizer.
        to_fp32: the number that an integer counts as; by default the nearest one.

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
        at_least = codes(to_fp32(middle)) >= wanted
        reached = torch.where(searching & at_least, middle, reached)
        below = torch.where(searching & ~at_least, middle, below)
    table = reached.T.contiguous()
    return table.float() if torch.equal(table.float().long(), table) else table.double()


ROWS = 4096
"""Integers that are evaluated at once."""


def steps_up_and_down(
    codes: Staircase, lowest: int, highest: int, channels: int, first_code: int
) -> tuple[Tensor, Tensor]:
    """Where any staircase rises, and where it falls: every integer is looked at.

    Sums that fp32 does not hold count as `rounded_down`.

    Args:
        codes: torch's function.
        lowest: smallest integer that can occur.
        highest: largest integer that can occur.
        channels: C.
        first_code: smallest code of the quantizer.

    Returns:
        Two tables (C, levels) of integers as of `threshold_table`: the code of an integer a is
        ``first_code`` plus the entries of the first that are at most a, less those of the second.

    Example:
        >>> valley = lambda a: a.abs().clamp(max=2)
        >>> steps_up_and_down(valley, -3, 3, 1, 0)
        (tensor([[-3., -3.,  1.,  2.]]), tensor([[-1.,  0.]]))
    """
    found = []
    before = torch.full((1, channels), float(first_code))
    for first in range(lowest, highest + 1, ROWS):
        integers = torch.arange(first, min(first + ROWS, highest + 1))
        now = codes(rounded_down(integers).unsqueeze(1).expand(-1, channels).contiguous())
        steps = now - torch.cat([before, now[:-1]])
        rows, places = steps.nonzero(as_tuple=True)
        found.append((integers[rows], places, steps[rows, places].long()))
        before = now[-1:]
    where, place, step = (torch.cat(parts) for parts in zip(*found, strict=True))
    up, down = (_table_of_steps(where, place, sign * step, channels, highest) for sign in (1, -1))
    return up, down


def _table_of_steps(
    where: Tensor, place: Tensor, step: Tensor, channels: int, highest: int
) -> Tensor:
    """A row for each channel, of the integers at which it goes up, each as often as it does."""
    goes = step > 0
    entries = where[goes].repeat_interleave(step[goes])
    owner, order = place[goes].repeat_interleave(step[goes]).sort(stable=True)
    counts = torch.bincount(owner, minlength=channels)
    level = torch.arange(len(owner)) - (counts.cumsum(0) - counts)[owner]
    never = -rounded_down(torch.tensor([-(highest + 1)]))
    table = torch.full((channels, max(int(counts.max()), 1)), int(never))
    table[owner, level] = entries[order]
    return table.float()
