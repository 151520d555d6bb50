"""What a layer keeps of its rounded weights until the backward: a byte each, not a float."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks


def codes_kept(
    x: Tensor, weight: Tensor, codes: Tensor, scale: float | Tensor, magnitude: int = 127
) -> AbstractContextManager[None]:
    """Inside the block, what keeps ``weight`` for its backward keeps the codes as bytes instead.

    As two bytes each, or four, where one is too small for them.

    Gradients are the same bits. Done where it pays, and where nobody would notice: weights that
    outweigh the input, one scale for all of them, a backward to come, no compiler that decides
    itself what is kept, and nobody else who has a say in that (a checkpoint, an offload to the
    host).

    Args:
        x: input of the layer.
        weight: ``codes * scale``.
        codes: integers of the weight's shape, floating point.
        scale: their factor.
        magnitude: the largest one of theirs; 128 stands for -128.
    """
    pays = weight.numel() > x.numel() and weight.requires_grad and torch.is_grad_enabled()
    if (
        not pays
        or isinstance(scale, Tensor)
        or torch.compiler.is_compiling()
        or _others_decide()
        or type(weight) is not Tensor
    ):
        return nullcontext()
    return _codes_kept(weight, codes, scale, _narrowest(magnitude))


def _narrowest(magnitude: int) -> torch.dtype:
    """The narrowest type of integers of a magnitude, the largest of which may be negative alone."""
    types = (torch.int8, torch.int16, torch.int32)
    return next(one for one in types if magnitude <= -torch.iinfo(one).min)


def _others_decide() -> bool:
    # Hooks do not nest: inner ones would hide all of the layer's tensors from those around them.
    # The transforms of torch.func allow none.
    autograd = torch._C._autograd
    allowed = autograd._saved_tensors_hooks_is_enabled()  # type: ignore[attr-defined]
    return not allowed or autograd._top_saved_tensors_default_hooks(False) is not None


class _StandIn(torch.autograd.Function):
    """Zeros of a tensor's shape without memory of their own, whose gradient is the tensor's."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        return _zero(tensor.dtype, tensor.device).expand(tensor.shape)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad


@cache
def _zero(dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.zeros((), dtype=dtype, device=device)


@contextmanager
def _codes_kept(
    weight: Tensor, codes: Tensor, scale: float | Tensor, narrow: torch.dtype
) -> Iterator[None]:
    assert weight.stride() == codes.stride()
    address, count, dtype = weight.data_ptr(), weight.numel(), weight.dtype
    shape, strides = weight.shape, weight.stride()
    waiting = [codes.detach()]  # emptied below: autograd holds on to both hooks
    stand_in = _StandIn.apply(weight)

    def pack(tensor: Tensor) -> Tensor:
        if tensor.data_ptr() != address or tensor.numel() != count:
            return tensor
        # A linear layer keeps its weight transposed.
        return waiting[0].as_strided(tensor.shape, tensor.stride()).to(narrow)

    def unpack(kept: Any) -> Tensor:
        if kept.dtype != narrow:
            return kept  # type: ignore[no-any-return]
        values = kept.to(dtype).mul_(scale)
        if not torch.is_grad_enabled():
            return values
        # A second derivative goes on to the weight.
        linked = values.as_strided(shape, strides) + stand_in
        return linked.as_strided(kept.shape, kept.stride())

    with saved_tensors_hooks(pack, unpack):
        yield
    waiting.clear()
