"""Arithmetic in which codes add up exactly, whatever faster one is switched on around it.

Sums of codes are integers, below 2**24 in most layers (`core.exact_sums`): fp32 holds those, fp16,
bf16 and TF32 do not.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, backends

from brevitas_multiquant.errors import PrecisionError

Contraction = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""Input, weight, bias -> what a convolution or linear layer makes of them."""


def contract_exactly(contract: Contraction, x: Tensor, weight: Tensor) -> Tensor:
    """A layer's operation in fp32, or in fp64 for fp64 weights; autocast has no say in it.

    Args:
        contract: the operation.
        x: input, integers or multiples of one power of two.
        weight: as ``x``.

    Returns:
        A new fp32 or fp64 tensor.

    Example:
        >>> x, weight = torch.full((1, 600), 255.0), torch.full((1, 600), 3.0)
        >>> with torch.autocast("cpu", torch.bfloat16):
        ...     contract_exactly(torch.nn.functional.linear, x, weight)
        tensor([[459000.]])
    """
    wide = torch.promote_types(weight.dtype, torch.float32)
    x, weight = x.to(wide), weight.to(wide)
    device = x.device.type
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        with torch.autocast(device, enabled=False):
            return contract(x, weight, None)
    return contract(x, weight, None)


def refuse_mixed_types(x: Tensor, weight: Tensor) -> None:
    """While training: check that a layer can multiply what it reads by its weights.

    Codes above 8 bits, and fixed-point values, stay in fp32 where half precisions lose them.

    Raises:
        PrecisionError: half-precision weights, and no autocast.
    """
    if x.dtype == weight.dtype or torch.is_autocast_enabled(x.device.type):
        return
    raise PrecisionError(
        f"training: expected parameters in float32, got {weight.dtype}, in which the quantized "
        f"input of a layer is not exact; call net.float() and train under torch.autocast"
    )


def exact_arithmetic(device: torch.device) -> AbstractContextManager[None]:
    """Inside the block, CUDA multiplies and adds fp32 as fp32; nothing on any other device.

    A compiled graph cannot change such settings: whoever runs one stands around it.

    Args:
        device: where the block computes.

    Example:
        >>> with exact_arithmetic(torch.device("cpu")):
        ...     pass
    """
    if device.type != "cuda" or torch.compiler.is_compiling():
        return nullcontext()
    return _full_precision()


def _attribute(owner: Any, name: str, exact: Any) -> tuple[Callable[[], Any], Any, Any]:
    return lambda: getattr(owner, name), lambda value: setattr(owner, name, value), exact


_SETTINGS: tuple[tuple[Callable[[], Any], Callable[[Any], None], Any], ...] = (
    (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision, "highest"),
    _attribute(backends.cudnn, "allow_tf32", False),
    _attribute(backends.cuda.matmul, "fp32_precision", "ieee"),
    _attribute(backends.cudnn.conv, "fp32_precision", "ieee"),  # type: ignore[attr-defined]
)
"""Read, write, and what is exact; the older names first, as they write the newer ones too."""

_lock = threading.Lock()
_inside = 0
_before: list[Any] = []


@contextmanager
def _full_precision() -> Iterator[None]:
    """The settings are the process's: the first thread in sets them, the last one out restores."""
    global _inside
    with _lock:
        if not _inside:
            _before[:] = [_read(read) for read, _, _ in _SETTINGS]
            _write([None if old is None else exact for old, (_, _, exact) in _pairs()])
        _inside += 1
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if not _inside:
                _write(_before)


def _pairs() -> Iterator[tuple[Any, Any]]:
    return zip(_before, _SETTINGS, strict=True)


def _read(read: Callable[[], Any]) -> Any:
    try:
        return read()
    except RuntimeError:  # an older name, where a user has set the newer one alone
        return None


def _write(values: list[Any]) -> None:
    for value, (_, write, _) in zip(values, _SETTINGS, strict=True):
        if value is not None:
            write(value)
