"""Quantization at real-valued bit-widths, with its closed-form gradient.

FracBits (Yang and Jin, AAAI 2021) mixes the values of two neighbouring bit-widths,

    v = (1 - f) Q_k(x) + f Q_{k+1}(x),    k = min(floor(b), most - 1),    f = b - k,

so that a bit-width b has a gradient: sum of ``g (Q_{k+1} - Q_k)`` for an upstream gradient g. As k
is never the largest bit-width, that gradient exists at every whole number too, where it is the
right-hand derivative (the left-hand one at ``most``). Inside the range both values have the slope
of the plain quantizer, so that x, l and u have its closed forms whatever f is.

Values are mixed, not codes, as the codes of two bit-widths have different units: ``q / (2**b - 1)``
for activations, ``2 q / (2**b - 1) - 1`` for weights. At a whole number they are the codes of
`quantize_activation`, or of `quantize_weight` on the grid ``odd(b)``, times the reciprocal of their
divisor, to the bit. At 0 bits the value is 0 whatever x is: the tensor, or the channel, is pruned.
"""

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from brevitas_multiquant.core.clip_gradient import (
    inner_product,
    is_one_range,
    moment,
    reads_are_free,
    total_of,
    widen,
    within,
)

ACTIVATION, WEIGHT = (1, 0), (2, 1)
"""Gain and offset of values: ``gain * q / (2**b - 1) - offset``."""


def fractional_activation(
    x: Tensor, lower: Tensor, upper: Tensor, bits: Tensor, most: int
) -> Tensor:
    """Values of activations at real-valued bit-widths.

    Args:
        x: any shape, floating point; half precisions are quantized in fp32.
        lower: l, a scalar or of a shape that broadcasts to that of ``x``.
        upper: u likewise.
        bits: b, from 0 to ``most``; a scalar or of a shape that broadcasts.
        most: the largest candidate.

    Returns:
        Values like ``x``, in [0, 1].

    Example:
        >>> x, bounds = torch.tensor([0.0, 0.4, 1.0]), (torch.tensor(0.0), torch.tensor(1.0))
        >>> fractional_activation(x, *bounds, torch.tensor(1.5), most=8)
        tensor([0.0000, 0.1667, 1.0000])
    """
    return _Fractional.apply(x, lower, upper, bits, most, *ACTIVATION)  # type: ignore[no-any-return]


def fractional_weight(
    weight: Tensor, lower: Tensor, upper: Tensor, bits: Tensor, most: int
) -> Tensor:
    """Values of weights at real-valued bit-widths: one for all, or one for each output channel.

    Args:
        weight: any shape, output channels first.
        lower: l, a scalar or of a shape that broadcasts: one for each output channel.
        upper: u likewise.
        bits: b, from 0 to ``most``; a scalar, or (C, 1, ...) for each output channel.
        most: the largest candidate.

    Returns:
        Values like ``weight``, in [-1, 1].

    Example:
        >>> w, bounds = torch.tensor([[-0.4, 0.4]] * 2), (torch.tensor(-1.0), torch.tensor(1.0))
        >>> fractional_weight(w, *bounds, torch.tensor([[2.0], [0.0]]), most=8)
        tensor([[-0.3333,  0.3333],
                [ 0.0000,  0.0000]])
    """
    return _Fractional.apply(weight, lower, upper, bits, most, *WEIGHT)  # type: ignore[no-any-return]


class _Fractional(torch.autograd.Function):
    """Few passes where there is one range and one bit-width that can be read; else tensors."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        x, lower, upper, bits, most, gain, offset = inputs
        ctx.most, ctx.gain, ctx.offset = most, gain, offset
        ctx.is_read = is_one_range(x, lower, upper) and not bits.dim() and reads_are_free(bits)
        if not ctx.is_read:
            ctx.save_for_backward(x, lower, upper, bits)
            return _mixed(*inputs).to(x.dtype)
        values = _mixed_in_few_passes(*inputs)
        ctx.save_for_backward(x, lower, upper, bits, values)
        return values.to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, lower, upper, bits, *values = ctx.saved_tensors
        given = (grad, x, lower, upper, bits)
        settings = (ctx.most, ctx.gain, ctx.offset)
        if ctx.is_read:
            found = _gradients_in_few_passes(*given, values[0], *settings, ctx.needs_input_grad[3])
        else:
            found = _gradients(*given, *settings)
        own = zip(found, (x, lower, upper, bits), strict=True)
        return *(g if g is None else g.to(t.dtype) for g, t in own), None, None, None


def _split(bits: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """The lower of the two bit-widths, and the share of the upper one."""
    below = bits.floor().clamp(max=most - 1)
    return below, bits - below


def rounded_places(distance: Tensor, inverse: Tensor, largest: Any, offset: int) -> Tensor:
    """Places of values in a range, around their middle where there is an offset."""
    # a reciprocal times a number, as the plain quantizer has it: a quotient has other bits
    places = (distance * (inverse * largest)).round_()
    return places.sub_(largest / 2) if offset else places


def _mixed(
    x: Tensor, lower: Tensor, upper: Tensor, bits: Tensor, most: int, gain: int, offset: int
) -> Tensor:
    lower, upper, x = widen(x, lower, upper)
    first, second, (low, high) = _both(x, lower, upper, bits.to(x.dtype), most, gain, offset)
    return first.mul_(low).add_(second.mul_(high))


def _both(
    x: Tensor, lower: Tensor, upper: Tensor, bits: Tensor, most: int, gain: int, offset: int
) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]]:
    """Places at both bit-widths, and by what each is multiplied in the mixture."""
    below, share = _split(bits, most)
    fewer, more = torch.exp2(below) - 1, torch.exp2(below + 1) - 1
    distance = torch.minimum(torch.maximum(x, lower), upper).sub_(lower)
    inverse = (upper - lower).reciprocal()
    first = rounded_places(distance, inverse, fewer, offset)
    second = rounded_places(distance, inverse, more, offset)
    low = torch.where(below > 0, gain * (1 - share) / fewer.clamp(min=1), 0.0)
    return first, second, (low, gain * share / more)


def _gradients(
    grad: Tensor,
    x: Tensor,
    lower: Tensor,
    upper: Tensor,
    bits: Tensor,
    most: int,
    gain: int,
    offset: int,
) -> tuple[Tensor, ...]:
    shapes = lower.shape, upper.shape
    lower, upper, x = widen(x, lower, upper)
    grad, bits = grad.to(x.dtype), bits.to(x.dtype)
    below, share = _split(bits, most)
    width = upper - lower
    # of two bit-widths the lower one is constant where it is 0
    slope = gain * torch.where(below > 0, 1.0, share) / width
    passed = within(grad, x, lower, upper) * slope
    position = passed * ((x - lower) / width)
    first, second, _ = _both(x, lower, upper, bits, most, gain, offset)
    fewer, more = torch.exp2(below) - 1, torch.exp2(below + 1) - 1
    rise = second.mul_(gain / more) - first.mul_(
        torch.where(below > 0, gain / fewer.clamp(min=1), 0.0)
    )
    return (
        passed,
        total_of(position - passed, shapes[0]),
        total_of(-position, shapes[1]),
        total_of(grad * rise, bits.shape),
    )


def _numbers(bits: Tensor, most: int) -> tuple[int, float, int, int]:
    """`_split`, and the largest places at both bit-widths, as numbers."""
    given = bits.item()
    below = min(math.floor(given), most - 1)
    return below, given - below, 2**below - 1, 2 ** (below + 1) - 1


def _mixed_in_few_passes(
    x: Tensor, lower: Tensor, upper: Tensor, bits: Tensor, most: int, gain: int, offset: int
) -> Tensor:
    lower, upper, x = widen(x, lower, upper)
    _, share, fewer, more = _numbers(bits, most)
    inverse = (upper - lower).reciprocal()
    distance = _clipped(x, lower, upper)
    if not fewer or share == 1:
        return _places_(distance, inverse, more, offset).mul_(gain * share / more)
    if not share:
        return _places_(distance, inverse, fewer, offset).mul_(gain / fewer)
    first = torch.mul(distance, (inverse * fewer).item()).round_()
    first = first.sub_(fewer / 2) if offset else first
    second = _places_(distance, inverse, more, offset)
    return first.mul_(gain * (1 - share) / fewer).add_(second, alpha=gain * share / more)


def _clipped(x: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
    """Distances from l of values within the range."""
    low = lower.item()
    distance = torch.clamp(x, low, upper.item())
    return distance.sub_(low) if low else distance


def _places_(distance: Tensor, inverse: Tensor, largest: int, offset: int) -> Tensor:
    """`rounded_places`, in place."""
    places = distance.mul_((inverse * largest).item()).round_()
    return places.sub_(largest / 2) if offset else places


def _gradients_in_few_passes(
    grad: Tensor,
    x: Tensor,
    lower: Tensor,
    upper: Tensor,
    bits: Tensor,
    values: Tensor,
    most: int,
    gain: int,
    offset: int,
    learned: bool,
) -> tuple[Tensor | None, ...]:
    lower, upper, x = widen(x, lower, upper)
    grad = grad.to(x.dtype)
    below, share, fewer, more = _numbers(bits, most)
    inverse = (upper - lower).reciprocal()
    passed = within(grad, x, lower, upper)
    total = passed.sum()
    slope = inverse * (gain * (1 if below else share))
    position = moment(passed, x, lower, upper, total) * inverse
    rise = None
    if learned:
        # v is kept, so that one rounding tells both: v' - v = (v'' - v) / (1 - f) = (v - v') / f
        up = share < 0.5
        largest = more if up else fewer
        other = grad.new_zeros(())
        if largest:
            places = _places_(_clipped(x, lower, upper), inverse, largest, offset)
            other = inner_product(grad, places) * (gain / largest)
        mixed = inner_product(grad, values)
        rise = (other - mixed) / (1 - share) if up else (mixed - other) / share
    return passed.mul_(slope), slope * (position - total), -slope * position, rise
