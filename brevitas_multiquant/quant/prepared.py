"""Brevitas layers that are made once and copied: injecting a quantizer takes ten times as long."""

from collections.abc import Callable, Hashable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from brevitas_multiquant.core.copying import copied


def prepared(kind: Callable[..., nn.Module], **arguments: Any) -> Any:
    """``kind(**arguments)`` with parameters of its own still to come: they are empty.

    What its quantizers train, or keep as buffers, is there. No random number is drawn.

    Args:
        kind: a layer of Brevitas, or derived from one, whose quantizers start from nothing random.
        **arguments: of its constructor. With one that has no hash, the layer is made anew.

    Example:
        >>> from brevitas.nn import QuantConv2d, QuantIdentity
        >>> one, other = (prepared(QuantIdentity, bit_width=4) for _ in range(2))
        >>> one.act_quant.bit_width(), one.act_quant is other.act_quant
        (tensor(4.), False)
        >>> prepared(QuantConv2d, in_channels=3, out_channels=8, kernel_size=1).weight.shape
        torch.Size([0])
    """
    probe = torch.tensor(0.0)
    place = (probe.device, probe.dtype, probe.is_inference(), *vars(probe))
    # Of equal numbers of two types (8, 8.0; 1, True) Brevitas may make two things.
    items = tuple((name, type(value), value) for name, value in arguments.items())
    is_kept = type(probe) is Tensor and _has_hash(items)
    return copied((_made if is_kept else _made.__wrapped__)(kind, items, place), {})


def _has_hash(value: Any) -> bool:
    try:
        hash(value)
    except TypeError:  # a list as a stride; an enumeration of Brevitas
        return False
    return True


@lru_cache(maxsize=256)
def _made(kind: Callable[..., nn.Module], arguments: Any, place: Hashable) -> nn.Module:
    """A layer as new ones are where it is asked for: of this device, type, and mode."""
    with torch.random.fork_rng(devices=[]):
        layer = kind(**{name: value for name, _, value in arguments})
    for parameter in layer.parameters(recurse=False):
        parameter.data = parameter.data.new_empty(0)
    return layer
