"""Clip-quantization with its closed-form gradient: pure functions on tensors.

Everything stays in the integer *code* domain. The paper's real values (eq. 3) are
``code / (2**b - 1)`` for activations and ``code / 3`` for 2-bit weights (other weight formats have
other divisors); the layer that consumes both applies the two factors as one scale.
"""

import math
from typing import Any

import torch
from torch import Tensor

from brevitas_multiquant.core.grids import ODD, WeightFormat

MIN_WIDTH = 1e-5
"""A range is never narrower than this times max(1, |l|), whatever its parameters say: u > l by
construction, also where l is so large that adding 1e-5 to it would be rounded away."""


def activation_levels(bits: int) -> int:
    """Largest activation code at a bit-width: ``2**bits - 1``.

    Example:
        >>> activation_levels(4)
        15
    """
    return 2**bits - 1


def quantize_activation(
    x: Tensor, lower: Tensor, upper: Tensor, bits: int, overwrite: bool = False
) -> Tensor:
    """Codes ``round((2**b - 1) * clip((x - l) / (u - l), 0, 1))`` (eqs. 1 and 2).

    Gradients are closed-form: straight through the rounding (half to even), and through the clip
    wherever ``l <= x <= u``, bounds included.

    Args:
        x: any shape, floating point. Half precisions are quantized in fp32, so that the levels
            are those of fp32; codes up to 255 are exact in all of them.
        lower: scalar l.
        upper: scalar u; a narrower range counts as wide as `guarded_upper` makes it.
        bits: bit-width b.
        overwrite: nobody else reads ``x``; where no gradient is recorded either, the codes take
            its place in memory.

    Returns:
        Integer-valued tensor like ``x``, in ``[0, 2**b - 1]``; fp32 where the codes are too large
        for the type of ``x``.

    Example:
        >>> x = torch.tensor([-1.0, 0.0, 0.4, 1.0, 9.0])
        >>> quantize_activation(x, torch.tensor(0.0), torch.tensor(1.0), 2)
        tensor([0., 0., 1., 3., 3.])
    """
    levels = activation_levels(bits)
    if overwrite and not torch.is_grad_enabled():
        lower, upper, x_wide = _widen(x, lower, upper)
        return _narrowed(_rounded(x_wide.sub_(lower), lower, upper, levels), x, levels)
    return _clip_quantize(x, lower, upper, levels, 1, 0)


def quantize_weight(
    weight: Tensor, lower: Tensor, upper: Tensor, weight_format: WeightFormat = ODD
) -> Tensor:
    """2-bit weight codes ``step * round(levels * clip((w - l) / (u - l), 0, 1)) + offset``.

    Levels, step and offset are the format's: 3, 2 and -3 for the paper's odd integers (eqs. 1 to
    3). Gradients as of `quantize_activation`.

    Args:
        weight: any shape.
        lower: scalar l.
        upper: scalar u.
        weight_format: which integers the codes are.

    Returns:
        Integers of the format like ``weight``; divided by its divisor they are real weights: for
        the odd integers by 3, the paper's levels -1, -1/3, 1/3, 1.

    Example:
        >>> w = torch.tensor([-2.0, -0.2, 0.2, 2.0])
        >>> quantize_weight(w, torch.tensor(-1.0), torch.tensor(1.0))
        tensor([-3., -1.,  1.,  3.])
    """
    levels, step, offset = weight_format.levels, weight_format.step, weight_format.offset
    return _clip_quantize(weight, lower, upper, levels, step, offset)


class _ClipQuantize(torch.autograd.Function):
    """codes = step * round(levels * clip((x - l) / (u - l), 0, 1)) + offset.

    Saves x alone, which the network keeps anyway. Bounds stay tensors: no host synchronisation.
    The backward is made of operations that have a derivative themselves, for Hessians.
    """

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        _ClipQuantize.keep(ctx, inputs)
        return _codes(*inputs)

    @staticmethod
    def keep(ctx: Any, inputs: tuple[Any, ...]) -> None:
        x, lower, upper, levels, step, _ = inputs
        ctx.save_for_backward(x, lower, upper)
        ctx.gain = step * levels

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, lower_raw, upper_raw = ctx.saved_tensors
        lower, upper, x_wide = _widen(x, lower_raw, upper_raw)
        passed = _within(grad.to(x_wide.dtype), x_wide, lower, upper)
        slope = ctx.gain / (upper - lower)
        grad_lower = grad_upper = None
        if ctx.needs_input_grad[1] or ctx.needs_input_grad[2]:
            total = _total(passed)
            position = _moment(passed, x_wide, lower, upper, total) / (upper - lower)
            grad_upper = (-slope * position).to(upper_raw.dtype)
            grad_lower = (slope * (position - total)).to(lower_raw.dtype)
        grad_x = None
        if ctx.needs_input_grad[0]:  # in place, unless a second derivative reads it again
            scaled = passed * slope if torch.is_grad_enabled() else passed.mul_(slope)
            grad_x = scaled.to(x.dtype)
        return grad_x, grad_lower, grad_upper, None, None, None


class _TransformedClipQuantize(_ClipQuantize):
    """The same for the transforms of ``torch.func``: each call takes twenty times as long."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        x: Tensor, lower: Tensor, upper: Tensor, levels: int, step: int, offset: int
    ) -> Tensor:
        return _codes(x, lower, upper, levels, step, offset)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _ClipQuantize.keep(ctx, inputs)


def _clip_quantize(*inputs: Any) -> Tensor:
    function = _TransformedClipQuantize if is_transformed() else _ClipQuantize
    return function.apply(*inputs)  # type: ignore[no-any-return]


def _codes(x: Tensor, lower: Tensor, upper: Tensor, levels: int, step: int, offset: int) -> Tensor:
    lower, upper, x_wide = _widen(x, lower, upper)
    codes = _rounded(x_wide.sub(lower), lower, upper, levels)
    if step != 1:
        codes.mul_(step)
    if offset:
        codes.add_(offset)
    return _narrowed(codes, x, levels)


def _rounded(distance: Tensor, lower: Tensor, upper: Tensor, levels: int) -> Tensor:
    """``round(levels * clip(distance / (u - l), 0, 1))``, in the memory of ``distance``."""
    gain = levels / (upper - lower)
    if is_transformed():  # several ranges may share one distance
        return distance.mul(gain).clamp(0, levels).round()
    return distance.mul_(gain).clamp_(0, levels).round_()


def _narrowed(codes: Tensor, x: Tensor, levels: int) -> Tensor:
    """Codes in the type of ``x``, if every half precision holds them exactly."""
    return codes.to(x.dtype) if levels <= 255 else codes


def guarded_upper(lower: Tensor, upper: Tensor) -> Tensor:
    """The u that counts: at least `MIN_WIDTH` times max(1, |l|) above l.

    Example:
        >>> guarded_upper(torch.tensor(3000.0), torch.tensor(-1.0)) > 3000
        tensor(True)
    """
    return torch.maximum(upper, lower + MIN_WIDTH * lower.abs().clamp(min=1.0))


def _widen(x: Tensor, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Bounds with u > l, and x in a type whose arithmetic keeps the levels exact."""
    wide = torch.promote_types(x.dtype, torch.float32)
    lower = lower.to(wide)
    return lower, guarded_upper(lower, upper.to(wide)), x.to(wide)


def _moment(passed: Tensor, x: Tensor, lower: Tensor, upper: Tensor, total: Tensor) -> Tensor:
    """Sum of passed * (x - l).

    Where l is small beside the width the difference is taken after the sum, which saves a pass;
    elsewhere the two sums would cancel.
    """
    if _reads_are_free(x) and abs(lower.item()) <= (upper - lower).item():
        return _inner_product(passed, x) - lower * total
    return _inner_product(passed, x - lower)


def _reads_are_free(x: Tensor) -> bool:
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


def _inner_product(a: Tensor, b: Tensor) -> Tensor:
    """Sum of a * b in one pass without a product in memory, where their layouts agree."""
    if not _reads_are_free(a) or a.stride() != b.stride():
        return _total(a * b)
    outermost_first = sorted(range(a.dim()), key=a.stride, reverse=True)
    in_memory_order = (t.permute(outermost_first).flatten() for t in (a, b))
    return torch.dot(*in_memory_order)


def _total(values: Tensor) -> Tensor:
    """Sum of all values.

    A compiled graph sums each channel first, as the backward of a norm does: one loop for both.
    """
    if torch.compiler.is_compiling() and values.dim() > 2:
        return values.sum([dim for dim in range(values.dim()) if dim != 1]).sum()
    return values.sum()


def _within(grad: Tensor, x: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
    """The gradient where l <= x <= u, bounds included, and 0 elsewhere; always a new tensor."""
    if not _reads_are_free(x):
        return torch.where((x >= lower) & (x <= upper), grad, grad.new_zeros(()))
    # One fused pass; it excludes its bounds, so each is moved out to the next number.
    below, above = _next_number(lower, -1), _next_number(upper, 1)
    return torch.ops.aten.hardtanh_backward(grad, x, below, above)


def _next_number(bound: Tensor, sign: int) -> float:
    """The next number beside a bound, above it for sign 1 and below it for sign -1.

    Beside 0 it is a normal one: a subnormal number may count as 0, in any thread that computes
    (`torch.set_flush_denormal`), and then a value on the bound would not be within it. So within
    a range that ends there, subnormal numbers count as 0 always.
    """
    smallest = torch.finfo(bound.dtype).tiny
    if abs(bound.item()) < smallest:
        return sign * smallest
    return torch.nextafter(bound, bound.new_tensor(sign * math.inf)).item()
