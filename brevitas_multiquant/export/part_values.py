"""What the parts of a network make, apart from what they only hand on."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from brevitas_multiquant.core.output_structure import Value, tensors_of


@contextmanager
def hooked(module: nn.Module, hook: Callable[..., Any]) -> Iterator[None]:
    """Inside the block a module has a forward hook."""
    handle = module.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def made_by(module: nn.Module) -> Iterator[list[Tensor]]:
    """The tensors that a module makes inside the block, not those that it hands on."""
    made: list[Tensor] = []

    def keep(_module: nn.Module, inputs: Any, output: Value) -> None:
        kept = _identities(inputs)
        made.extend(tensor for tensor in tensors_of(output) if id(tensor) not in kept)

    with hooked(module, keep):
        yield made


def put_in(made: tuple[Tensor, ...], _part: nn.Module, inputs: Any, output: Value) -> Value:
    """Other tensors in place of those that a part makes; what it hands on stays."""
    rest, kept = iter(made), _identities(inputs)
    value = tuple(t if id(t) in kept else next(rest) for t in tensors_of(output))
    return value if isinstance(output, tuple) else value[0]


def _identities(inputs: Any) -> set[int]:
    return {id(tensor) for tensor in tree_leaves(inputs)}


def in_order_of(expected: list[Tensor], found: list[Tensor]) -> list[Tensor]:
    """The tensors of a file in the order of those that they are to be: each the nearest one.

    An exporter puts nodes that do not need each other into an order of its own, and makes one of
    those that compute the same, as of a layer that is called twice on one tensor.

    Example:
        >>> import torch
        >>> one, two = torch.ones(1), torch.zeros(1)
        >>> in_order_of([one, two, one], [two, one])
        [tensor([1.]), tensor([0.]), tensor([1.])]
    """
    rest, ordered = list(found), []
    for tensor in expected if found else ():
        same = [index for index, one in enumerate(rest) if one.shape == tensor.shape]
        nearest = min(same, key=lambda index: float((rest[index] - tensor).abs().max()))
        ordered.append(rest[nearest])
        if len(found) == len(expected):
            del rest[nearest]
    return ordered
