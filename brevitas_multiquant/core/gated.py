"""Quantization behind gates, with its closed-form gradient.

Bayesian Bits (van Baalen et al., NeurIPS 2020, arXiv:2005.07093) adds what each bit-width brings to
the one before, behind gates z from 0 to 1:

    v = z_2 (Q_2 + z_4 (Q_4 - Q_2 + z_8 (Q_8 - Q_4)))

Where bit-widths double, all levels of one are levels of the next, and a difference is the rest that
is left, rounded at the finer step, as the paper has it. Sorted by bit-width it is a mixture,

    v = sum of s_b Q_b(x),    s_2 = z_2 (1 - z_4),  s_4 = z_2 z_4 (1 - z_8),  s_8 = z_2 z_4 z_8,

whose shares s_b are what this module takes: any bit-widths may be in it. What is missing from a sum
of 1 is a tensor, or a channel, that is pruned. Every Q_b has the slope of the plain quantizer
inside the range, so that x, l and u have its closed forms times the sum of the shares, and a share
has the gradient sum of ``g Q_b`` for an upstream gradient g. Values are those of
`brevitas_multiquant.core.fractional`; one share of 1 is the plain quantizer, to the bit.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from brevitas_multiquant.core.clip_gradient import reads_are_free, total_of, widen, within
from brevitas_multiquant.core.fractional import ACTIVATION, WEIGHT, rounded_places


def gate_shares(gates: Tensor) -> Tensor:
    """Shares of the bit-widths of a chain of gates, of which each is behind those before it.

    Args:
        gates: (n, ...): z from 0 to 1, the first one of the first bit-width.

    Returns:
        (n, ...), of a sum along the first dimension that is the first gate.

    Example:
        >>> gate_shares(torch.tensor([1.0, 0.5, 0.5]))
        tensor([0.5000, 0.2500, 0.2500])
    """
    reached = gates.cumprod(0)
    return reached - torch.cat([reached[1:], torch.zeros_like(reached[:1])])


def gated_activation(
    x: Tensor, lower: Tensor, upper: Tensor, shares: Tensor, bits: Sequence[int]
) -> Tensor:
    """Values of activations, a mixture of several bit-widths.

    Args:
        x: any shape, floating point; half precisions are quantized in fp32.
        lower: l, a scalar or of a shape that broadcasts to that of ``x``.
        upper: u likewise.
        shares: (n, ...) of each bit-width; what follows n broadcasts to ``x``. A single share of
            exactly 0 is left out, in the gradient too: a gate that is shut has none.
        bits: the n bit-widths, from 1.

    Returns:
        Values like ``x``, in [0, 1].

    Example:
        >>> x, bounds = torch.tensor([0.0, 0.4, 1.0]), (torch.tensor(0.0), torch.tensor(1.0))
        >>> gated_activation(x, *bounds, torch.tensor([0.5, 0.5]), [1, 2])
        tensor([0.0000, 0.1667, 1.0000])
    """
    return _Gated.apply(x, lower, upper, shares, tuple(bits), *ACTIVATION)  # type: ignore[no-any-return]


def gated_weight(
    weight: Tensor, lower: Tensor, upper: Tensor, shares: Tensor, bits: Sequence[int]
) -> Tensor:
    """Values of weights, a mixture of several bit-widths.

    Args:
        weight: any shape, output channels first.
        lower: l, a scalar or of a shape that broadcasts: one for each output channel.
        upper: u likewise.
        shares: (n,), or (n, C, 1, ...) for each output channel; as of `gated_activation`.
        bits: the n bit-widths, from 1.

    Returns:
        Values like ``weight``, in [-1, 1].

    Example:
        >>> w, bounds = torch.tensor([[-0.4, 0.4]] * 2), (torch.tensor(-1.0), torch.tensor(1.0))
        >>> gated_weight(w, *bounds, torch.tensor([[[1.0], [0.0]]]), [2])
        tensor([[-0.3333,  0.3333],
                [ 0.0000,  0.0000]])
    """
    return _Gated.apply(weight, lower, upper, shares, tuple(bits), *WEIGHT)  # type: ignore[no-any-return]


class _Gated(torch.autograd.Function):
    """Each bit-width is rounded once forward and once backward; nothing but inputs is kept."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        lower: Tensor,
        upper: Tensor,
        shares: Tensor,
        bits: tuple[int, ...],
        gain: int,
        offset: int,
    ) -> Tensor:
        ctx.save_for_backward(x, lower, upper, shares)
        ctx.settings = bits, gain, offset
        wide_lower, wide_upper, wide = widen(x, lower, upper)
        distance, inverse = _distance(wide, wide_lower, wide_upper)
        total = torch.zeros_like(wide)
        for share, one in zip(shares.to(wide.dtype), bits, strict=True):
            if not _is_shut(share):
                largest = 2**one - 1
                places = rounded_places(distance, inverse, largest, offset)
                total = total.addcmul_(places, share * gain / largest)
        return total.to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        given = ctx.saved_tensors
        bits, gain, offset = ctx.settings
        x, lower, upper, shares = given
        lower, upper, x = widen(x, lower, upper)
        grad, shares = grad.to(x.dtype), shares.to(x.dtype)
        distance, inverse = _distance(x, lower, upper)
        passed = within(grad, x, lower, upper) * (gain * shares.sum(0) * inverse)
        position = passed * ((x - lower) * inverse)
        of_shares = []
        for share, one in zip(shares, bits, strict=True):
            if _is_shut(share):
                of_shares.append(torch.zeros_like(share))
                continue
            largest = 2**one - 1
            places = rounded_places(distance, inverse, largest, offset)
            of_shares.append(total_of(grad * places, share.shape) * (gain / largest))
        found = (
            passed,
            total_of(position - passed, given[1].shape),
            total_of(-position, given[2].shape),
            torch.stack(of_shares),
        )
        own = (g.to(t.dtype) for g, t in zip(found, given, strict=True))
        return *own, None, None, None


def _distance(x: Tensor, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
    """How far values are above l once they are clipped, and the reciprocal of the range's width."""
    clipped = torch.minimum(torch.maximum(x, lower), upper)
    return clipped.sub_(lower), (upper - lower).reciprocal()


def _is_shut(share: Tensor) -> bool:
    """Whether a share is 0 and can be read."""
    return not share.dim() and reads_are_free(share) and not share.item()
