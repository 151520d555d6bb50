"""What the closed-form gradients of quantizers are made of: ranges, masks and sums.

Each has a form with few passes, for one range whose ends can be read without waiting, and one of
tensor operations alone, for ranges per channel, other devices and compiled graphs.
"""

import math

import torch
from torch import Tensor

MIN_WIDTH = 1e-5
"""A range is never narrower than this times max(1, |l|), whatever its parameters say: u > l by
construction, also where l is so large that adding 1e-5 to it would be rounded away."""


def guarded_upper(lower: Tensor, upper: Tensor) -> Tensor:
    """The u that counts: at least `MIN_WIDTH` times max(1, |l|) above l.

    Example:
        >>> guarded_upper(torch.tensor(3000.0), torch.tensor(-1.0)) > 3000
        tensor(True)
    """
    return torch.maximum(upper, lower + MIN_WIDTH * lower.abs().clamp(min=1.0))


def widen(x: Tensor, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Bounds with u > l, and x in a type whose arithmetic keeps the levels exact."""
    wide = torch.promote_types(x.dtype, torch.float32)
    lower = lower.to(wide)
    return lower, guarded_upper(lower, upper.to(wide)), x.to(wide)


def moment(passed: Tensor, x: Tensor, lower: Tensor, upper: Tensor, total: Tensor) -> Tensor:
    """Sum of passed * (x - l).

    Where l is small beside the width the difference is taken after the sum, which saves a pass;
    elsewhere the two sums would cancel.
    """
    if not is_one_range(x, lower, upper) or total.dim():
        return total_of(passed * (x - lower), total.shape)
    if abs(lower.item()) <= (upper - lower).item():
        return inner_product(passed, x) - lower * total
    return inner_product(passed, x - lower)


def is_one_range(x: Tensor, lower: Tensor, upper: Tensor) -> bool:
    """Whether there is one range, which can be read."""
    return not lower.dim() and not upper.dim() and reads_are_free(x)


def reads_are_free(x: Tensor) -> bool:
    """Whether a scalar can be read without waiting for a device or breaking a compiled graph.

    Tensors of other types, such as fake ones, have no value; under vmap they have several.
    """
    return (
        x.device.type == "cpu"
        and type(x) in (Tensor, torch.nn.Parameter)
        and not torch.compiler.is_compiling()
        and not is_transformed()
    )


def is_transformed() -> bool:
    """Whether a transform of ``torch.func`` runs, whose tensors stand for others.

    Example:
        >>> is_transformed(), torch.func.vmap(lambda x: x + is_transformed())(torch.zeros(2))
        (False, tensor([1., 1.]))
    """
    if torch.compiler.is_compiling():
        return False
    return torch._C._functorch.peek_interpreter_stack() is not None


def inner_product(a: Tensor, b: Tensor) -> Tensor:
    """Sum of a * b in one pass without a product in memory, where their layouts agree."""
    if a.stride() != b.stride():
        return (a * b).sum()
    outermost_first = sorted(range(a.dim()), key=a.stride, reverse=True)
    in_memory_order = (t.permute(outermost_first).flatten() for t in (a, b))
    return torch.dot(*in_memory_order)


def total_of(values: Tensor, shape: torch.Size) -> Tensor:
    """Sum of the values to a shape that broadcasts to theirs.

    A compiled graph sums each channel first, as the backward of a norm does: one loop for both.
    """
    if shape:
        return values.sum_to_size(shape)
    if not values.dim():
        return values
    if torch.compiler.is_compiling() and values.dim() > 2:
        return values.sum([dim for dim in range(values.dim()) if dim != 1]).sum()
    return values.sum()


def within(grad: Tensor, x: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
    """The gradient where l <= x <= u, bounds included, and 0 elsewhere; always a new tensor."""
    if not is_one_range(x, lower, upper):
        return torch.where((x >= lower) & (x <= upper), grad, grad.new_zeros(()))
    # One fused pass; it excludes its bounds, so each is moved out to the next number.
    below, above = next_number(lower, -1), next_number(upper, 1)
    return torch.ops.aten.hardtanh_backward(grad, x, below, above)


def next_number(bound: Tensor, sign: int) -> float:
    """The next number beside a bound, above it for sign 1 and below it for sign -1.

    Beside 0 it is a normal one: a subnormal number may count as 0, in any thread that computes
    (`torch.set_flush_denormal`), and then a value on the bound would not be within it. So within
    a range that ends there, subnormal numbers count as 0 always.
    """
    smallest = torch.finfo(bound.dtype).tiny
    if abs(bound.item()) < smallest:
        return sign * smallest
    return torch.nextafter(bound, bound.new_tensor(sign * math.inf)).item()
