"""Clip-quantization with its closed-form gradient: pure functions on tensors.

Everything stays in the integer *code* domain. The paper's real values (eq. 3) are
``code / (2**b - 1)`` for activations and ``code / 3`` for 2-bit weights (other grids have other
divisors); the layer that consumes both applies the two factors as one scale.

Levels are Python numbers, or tensors where one compiled graph serves several bit-widths.
"""

from typing import Any

import torch
from torch import Tensor

from brevitas_multiquant.core.clip_gradient import (
    MIN_WIDTH,  # noqa: F401 - its place until release 0.3
    guarded_upper,  # noqa: F401
    is_transformed,
    moment,
    reads_are_free,
    total_of,
    widen,
    within,
)
from brevitas_multiquant.core.grids import ODD, Grid, Numbers


def activation_levels(bits: int) -> int:
    """Largest activation code at a bit-width: ``2**bits - 1``.

    Example:
        >>> activation_levels(4)
        15
    """
    return 2**bits - 1


def quantize_activation(
    x: Tensor,
    lower: Tensor,
    upper: Tensor,
    bits: int,
    overwrite: bool = False,
    levels: Tensor | None = None,
) -> Tensor:
    """Codes ``round((2**b - 1) * clip((x - l) / (u - l), 0, 1))`` (eqs. 1 and 2).

    Gradients are closed-form: straight through the rounding (half to even), and through the clip
    wherever ``l <= x <= u``, bounds included.

    Args:
        x: any shape, floating point. Half precisions are quantized in fp32, so that the levels
            are those of fp32; codes up to 255 are exact in all of them.
        lower: l, a scalar or of a shape that broadcasts to that of ``x``.
        upper: u likewise; a narrower range counts as wide as `guarded_upper` makes it.
        bits: bit-width b.
        overwrite: nobody else reads ``x``; where no gradient is recorded either, the codes take
            its place in memory.
        levels: largest codes in place of ``2**b - 1``, none of them larger; a scalar or of a shape
            that broadcasts.

    Returns:
        Integer-valued tensor like ``x``, in ``[0, 2**b - 1]``; fp32 where codes of ``bits`` bits
        are too large for the type of ``x``.

    Example:
        >>> x = torch.tensor([-1.0, 0.0, 0.4, 1.0, 9.0])
        >>> quantize_activation(x, torch.tensor(0.0), torch.tensor(1.0), 2)
        tensor([0., 0., 1., 3., 3.])
        >>> bounds = torch.tensor(0.0), torch.tensor(1.0)
        >>> quantize_activation(x, *bounds, 8, levels=torch.tensor(3))
        tensor([0., 0., 1., 3., 3.])
    """
    most = activation_levels(bits)
    largest = most if levels is None else _as_number(levels)
    if overwrite and not torch.is_grad_enabled():
        codes = _codes(x, lower, upper, largest, 1, 0, "round", in_place=True)
    else:
        codes = _clip_quantize(x, lower, upper, largest, 1, 0, "round")
    return _narrowed(codes, x, most)


def quantize_weight(
    weight: Tensor,
    lower: Tensor,
    upper: Tensor,
    weight_format: Grid = ODD,
    numbers: Numbers | None = None,
) -> Tensor:
    """Weight codes ``step * round(levels * clip((w - l) / (u - l), 0, 1)) + offset``.

    Levels, step, offset and the way of rounding are the grid's: 3, 2 and -3 for the paper's odd
    integers (eqs. 1 to 3). Gradients as of `quantize_activation`.

    Args:
        weight: any shape.
        lower: l, a scalar or of a shape that broadcasts: one for each output channel.
        upper: u likewise.
        weight_format: which integers the codes are.
        numbers: tensors in place of the grid's own numbers: those of a grid of the same family and
            of no more bits.

    Returns:
        Integers of the grid like ``weight``; divided by its divisor they are real weights: for
        the odd integers by 3, the paper's levels -1, -1/3, 1/3, 1.

    Example:
        >>> w = torch.tensor([-2.0, -0.2, 0.2, 2.0])
        >>> quantize_weight(w, torch.tensor(-1.0), torch.tensor(1.0))
        tensor([-3., -1.,  1.,  3.])
    """
    grid = weight_format.finer or weight_format
    own: Any = numbers if numbers is not None and grid is weight_format else grid
    levels = _as_number(own.levels)
    codes = _clip_quantize(weight, lower, upper, levels, grid.step, own.offset, grid.rounding)
    if grid is not weight_format:
        again = _halved if weight_format.halves else _rounded_again
        codes = again(codes, numbers or weight_format.numbers, grid.place_bits)
    return _narrowed(codes, weight, weight_format.levels)


class _ClipQuantize(torch.autograd.Function):
    """codes = step * q + offset.

    With p = clip((x - l) / (u - l), 0, 1), q is round(levels * p), or floor((levels + 1) * p) but
    at most levels.
    Saves x alone, which the network keeps anyway. Bounds stay tensors: no host synchronisation.
    The backward is made of operations that have a derivative themselves, for Hessians.
    """

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        _ClipQuantize.keep(ctx, inputs)
        return _codes(*inputs)

    @staticmethod
    def keep(ctx: Any, inputs: tuple[Any, ...]) -> None:
        x, lower, upper, levels, step, _, rounding = inputs
        gain = step * _factor(levels, rounding)
        tensors = (gain,) if isinstance(gain, Tensor) else ()
        ctx.save_for_backward(x, lower, upper, *tensors)
        ctx.gain = None if tensors else gain

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, lower_raw, upper_raw, *gain = ctx.saved_tensors
        lower, upper, x_wide = widen(x, lower_raw, upper_raw)
        passed = within(grad.to(x_wide.dtype), x_wide, lower, upper)
        # in this order for numbers and tensors: a quotient of tensors has other bits
        slope = (upper - lower).reciprocal() * (gain[0] if gain else ctx.gain)
        grad_lower = grad_upper = None
        if ctx.needs_input_grad[1] or ctx.needs_input_grad[2]:
            total = total_of(passed, slope.shape)
            position = moment(passed, x_wide, lower, upper, total) / (upper - lower)
            grad_upper = total_of(-slope * position, upper_raw.shape).to(upper_raw.dtype)
            grad_lower = total_of(slope * (position - total), lower_raw.shape).to(lower_raw.dtype)
        grad_x = None
        if ctx.needs_input_grad[0]:  # in place, unless a second derivative reads it again
            scaled = passed * slope if torch.is_grad_enabled() else passed.mul_(slope)
            grad_x = scaled.to(x.dtype)
        return grad_x, grad_lower, grad_upper, None, None, None, None


class _TransformedClipQuantize(_ClipQuantize):
    """The same for the transforms of ``torch.func``: each call takes twenty times as long."""

    generate_vmap_rule = True

    @staticmethod
    def forward(*inputs: Any) -> Tensor:
        return _codes(*inputs)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _ClipQuantize.keep(ctx, inputs)


def _clip_quantize(*inputs: Any) -> Tensor:
    function = _TransformedClipQuantize if is_transformed() else _ClipQuantize
    return function.apply(*inputs)  # type: ignore[no-any-return]


def _factor(levels: Any, rounding: str) -> Any:
    """By what a position within the range is multiplied: values to round to, or bins."""
    return levels + 1 if rounding == "floor" else levels


def _codes(
    x: Tensor,
    lower: Tensor,
    upper: Tensor,
    levels: Any,
    step: int,
    offset: Any,
    rounding: str,
    in_place: bool = False,
) -> Tensor:
    lower, upper, x = widen(x, lower, upper)
    distance = x.sub_(lower) if in_place else x.sub(lower)
    gain = (upper - lower).reciprocal() * _factor(levels, rounding)
    # under a transform several ranges may share one distance
    product = distance.mul(gain) if is_transformed() else distance.mul_(gain)
    codes = _clamp_(product, levels)
    codes = codes.floor_() if rounding == "floor" else codes.round_()
    if step != 1:
        codes.mul_(step)
    if isinstance(offset, Tensor) or offset:
        codes.add_(offset)
    return codes


def _clamp_(values: Tensor, levels: Any) -> Tensor:
    """Between 0 and ``levels``, in place."""
    if isinstance(levels, Tensor):
        return values.clamp_(min=0).clamp_(max=levels)
    return values.clamp_(0, levels)


def _as_number(levels: Any) -> Any:
    """A tensor that holds one number as that, where nobody has to wait for it."""
    is_one = isinstance(levels, Tensor) and not levels.dim() and reads_are_free(levels)
    return levels.item() if is_one else levels


def _rounded_again(codes: Tensor, numbers: Numbers, bits: int) -> Tensor:
    """Integers of a finer grid as those of a coarser one, straight through rounding and clip.

    Every difference here is a multiple of ``1 / shift``: nothing is lost in any sum.
    """
    exact = codes / numbers.shift
    rounded = exact.detach().round()
    return exact + (rounded.clamp(max=numbers.highest) - exact.detach())


def _halved(codes: Tensor, numbers: Numbers, bits: int) -> Tensor:
    """Integers of ``bits`` bits bit by bit, straight through each rounding and clip."""
    exact, rounded = codes / numbers.shift, codes.detach()
    for fewer in range(bits - 1, 0, -1):
        half = (rounded / 2).round().clamp(max=2 ** (fewer - 1) - 1)
        goes_on = numbers.shift >= 2 ** (bits - fewer)
        if isinstance(goes_on, Tensor):
            rounded = torch.where(goes_on, half, rounded)
        elif goes_on:
            rounded = half
    return exact + (rounded - exact.detach())


def _narrowed(codes: Tensor, x: Tensor, levels: int) -> Tensor:
    """Codes in the type of ``x``, if every half precision holds them exactly."""
    return codes.to(x.dtype) if levels <= 255 else codes
