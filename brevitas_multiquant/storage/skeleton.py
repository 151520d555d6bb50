"""Networks without memory: built to be counted and checked, given their tensors afterwards.

Loading a file must not allocate what the file only claims. So the network that its header
describes is built on PyTorch's meta device, compared with the arrays that are there, and
materialised only if they fit. That also saves initialising weights that are overwritten.

Tensors that are given by value (``torch.tensor(0.5)``: constants of quantizers, counters) keep
it; tensors given by shape have none to keep.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules import module as registration
from torch.utils._device import DeviceContext, _device_constructors
from torch.utils._pytree import tree_leaves

from brevitas_multiquant.core.copying import deep_copy, kept_tensors
from brevitas_multiquant.errors import SourceError

_CONSTRUCTORS = _device_constructors()


class _MetaDevice(DeviceContext):
    """``with torch.device("meta")``, where ``torch.tensor`` remembers the value it was given."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if func not in _CONSTRUCTORS:  # most calls: say so at once
            return func(*args, **(kwargs or {}))
        if any(isinstance(one, fx.Proxy) for one in tree_leaves((args, kwargs))):
            return func(*args, **(kwargs or {}))  # a graph of a trace outlives this block
        if func is not torch.tensor:
            return super().__torch_function__(func, types, args, kwargs)
        return _without_memory(func(*args, **{**(kwargs or {}), "device": "cpu"}))


def _without_memory(value: Tensor) -> Tensor:
    twin = value.to("meta")
    twin.given_value = value  # type: ignore[attr-defined]
    return twin


@contextmanager
def without_memory() -> Iterator[None]:
    """Modules built inside have shapes and types, but no memory.

    Example:
        >>> with without_memory():
        ...     layer = nn.Linear(10**6, 10**6)
        >>> layer.weight.device.type
        'meta'
    """
    with _MetaDevice("meta"):
        yield


def skeleton_of(model: nn.Module) -> nn.Module:
    """A copy of a module that shares no memory with it and takes none.

    Example:
        >>> skeleton = skeleton_of(nn.BatchNorm2d(8))
        >>> skeleton.weight.device.type, skeleton.running_var.given_value.sum()
        ('meta', tensor(8.))
    """
    twins: dict[int, Any] = {
        id(parameter): nn.Parameter(parameter.detach().to("meta"), parameter.requires_grad)
        for parameter in model.parameters()
    }
    twins |= {id(buffer): _without_memory(buffer.detach()) for buffer in model.buffers()}
    twins |= {id(kept): _without_memory(kept.detach()) for kept in kept_tensors(model)}
    return deep_copy(model, twins)  # type: ignore[no-any-return]


@contextmanager
def limited_construction(numbers: int, modules: int) -> Iterator[None]:
    """Refuse, while it is being built, a module larger than expected.

    Args:
        numbers: parameters and buffers that may be registered inside, counted in numbers.
        modules: modules that may be.

    Raises:
        SourceError: as soon as there are more.

    Example:
        >>> with limited_construction(numbers=100, modules=10):
        ...     _ = nn.Linear(9, 10)
        >>> with limited_construction(numbers=99, modules=10):  # doctest: +ELLIPSIS
        ...     nn.Linear(9, 10)
        Traceback (most recent call last):
        brevitas_multiquant.errors.SourceError: expected a model of at most 99 numbers, got ...
    """
    thread, left = threading.get_ident(), {"numbers": numbers, "modules": modules}
    limits = dict(left)

    def spend(kind: str, amount: int) -> None:
        if threading.get_ident() != thread:
            return
        left[kind] -= amount
        if left[kind] < 0:
            raise SourceError(
                f"expected a model of at most {limits[kind]} {kind}, got a larger one"
            )

    def spend_tensor(_module: nn.Module, _name: str, tensor: Tensor | None) -> None:
        spend("numbers", 0 if tensor is None else tensor.numel())

    with ExitStack() as hooks:
        for hook in (
            registration.register_module_parameter_registration_hook(spend_tensor),
            registration.register_module_buffer_registration_hook(spend_tensor),
            registration.register_module_module_registration_hook(
                lambda _module, _name, _child: spend("modules", 1)
            ),
        ):
            hooks.callback(hook.remove)
        yield


def unknown_values(network: nn.Module) -> list[str]:
    """Tensors of a skeleton that no state dict would bring and whose value is not known.

    They are buffers that an author computed and keeps out of the state dict.
    """
    unknown = []
    for path, module in network.named_modules():
        for name, value in {**vars(module), **module._buffers}.items():
            if not isinstance(value, Tensor) or hasattr(value, "given_value"):
                continue
            persistent = name in module._buffers and name not in module._non_persistent_buffers_set
            if value.is_meta and not (persistent and value.is_floating_point()):
                unknown.append(f"{path}.{name}")
    return unknown


def materialise(network: nn.Module) -> None:
    """Give a skeleton memory on the CPU: known values; what is not known waits to be filled.

    Example:
        >>> with without_memory():
        ...     norm = nn.BatchNorm2d(8)
        >>> materialise(norm)
        >>> norm.num_batches_tracked, norm.weight.shape
        (tensor(0), torch.Size([8]))
    """

    def fill(tensor: Tensor) -> Tensor:
        if not tensor.is_meta:
            return tensor
        known = getattr(tensor, "given_value", None)
        return torch.empty_like(tensor, device="cpu") if known is None else known.clone()

    network._apply(fill)
