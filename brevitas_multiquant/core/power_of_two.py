"""Fixed-point quantization: integers times a power of two, rounded half up. Pure functions.

What hardware adds and shifts without a multiplication, and fp32 carries without an error: sums and
products of such values are exact in any order as long as they have at most 24 bits.
"""

from typing import Any

import torch
from torch import Tensor

from brevitas_multiquant.core.clip_gradient import is_transformed

MIN_REACH = 2.0**-24
"""A reach is never smaller, whatever its parameters say: a scale has to be a positive number."""

EDGE_BITS = 8
"""Bits of the image, the stem's and the classifier's weights, and the classifier's input."""


def integer_range(bits: int, signed: bool) -> tuple[int, int]:
    """Smallest and largest integer of ``bits`` bits.

    Example:
        >>> integer_range(8, signed=True), integer_range(4, signed=False)
        ((-128, 127), (0, 15))
    """
    return (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)


def power_of_two_scale(reach: Tensor, bits: int, signed: bool) -> Tensor:
    """The smallest power of two whose integers of ``bits`` bits reach ``reach``.

    Up to one step: the largest positive integer is one less than a power of two.

    Args:
        reach: scalar, the largest magnitude to represent.
        bits: bits of the integers, the sign included.
        signed: whether there are negative integers.

    Example:
        >>> power_of_two_scale(torch.tensor(3.0), 8, signed=True)
        tensor(0.0312)
    """
    mantissa, exponent = torch.frexp(reach.clamp(min=MIN_REACH))
    exponent = exponent - (mantissa == 0.5).to(exponent.dtype)  # powers of two are reached as such
    return torch.ldexp(torch.ones_like(reach), exponent - bits + int(signed))


def quantize_fixed_point(x: Tensor, reach: Tensor, bits: int, signed: bool) -> Tensor:
    """Values ``s * clip(floor(x / s + 1/2))``, where s is the `power_of_two_scale` of ``reach``.

    Gradients are closed-form: straight through the rounding inside the range; for the reach as if
    its scale followed it continuously (Jain et al., "Trained quantization thresholds", 2019).

    Args:
        x: any shape, floating point; half precisions are quantized in fp32.
        reach: scalar.
        bits: bits of the integers, the sign included.
        signed: whether there are negative integers.

    Returns:
        fp32 values like ``x``: integers of ``bits`` bits times s.

    Example:
        >>> x = torch.tensor([-9.0, -0.5, 0.24, 0.25, 9.0])
        >>> quantize_fixed_point(x, torch.tensor(1.0), 2, signed=True)
        tensor([-1.0000, -0.5000,  0.0000,  0.5000,  0.5000])
    """
    function = _TransformedFixedPoint if is_transformed() else _FixedPoint
    values, _ = function.apply(x, reach, bits, signed)
    return values  # type: ignore[no-any-return]


class _FixedPoint(torch.autograd.Function):
    """Values and their scale.

    The backward is made of operations that have a derivative themselves, for Hessians.
    """

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, Tensor]:
        output = _values_and_scale(*inputs)
        _FixedPoint.keep(ctx, inputs, output)
        return output

    @staticmethod
    def keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        x, reach, bits, signed = inputs
        _, scale = output
        ctx.mark_non_differentiable(scale)
        ctx.save_for_backward(x, reach, scale)
        ctx.integers = integer_range(bits, signed)

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Any) -> tuple[Tensor | None, ...]:
        x, reach, scale = ctx.saved_tensors
        lowest, highest = ctx.integers
        rounded = _round_half_up(x.detach(), scale)
        inside = (rounded >= lowest) & (rounded <= highest)
        error = rounded.clamp_(lowest, highest).sub_(torch.where(inside, x / scale, 0.0))
        grad_x = torch.where(inside, grad, 0.0).to(x.dtype) if ctx.needs_input_grad[0] else None
        grad_reach = (grad * error).sum() * scale / reach.clamp(min=MIN_REACH)
        return grad_x, grad_reach.to(reach.dtype), None, None


class _TransformedFixedPoint(_FixedPoint):
    """The same for the transforms of ``torch.func``: each call takes much longer."""

    @staticmethod
    def forward(x: Tensor, reach: Tensor, bits: int, signed: bool) -> tuple[Tensor, Tensor]:
        return _values_and_scale(x, reach, bits, signed)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        _FixedPoint.keep(ctx, inputs, output)


def _values_and_scale(x: Tensor, reach: Tensor, bits: int, signed: bool) -> tuple[Tensor, Tensor]:
    wide = torch.promote_types(reach.dtype, torch.float32)
    scale = power_of_two_scale(reach.to(wide), bits, signed)
    return _round_half_up(x, scale).clamp_(*integer_range(bits, signed)).mul_(scale), scale


def _round_half_up(x: Tensor, scale: Tensor) -> Tensor:
    """The nearest integers of ``x / scale``, ties upwards, always a new fp32 tensor."""
    return x.to(scale.dtype).div(scale).add_(0.5).floor_()
