"""Deep copies of modules as their authors write them: features kept from a forward, locks."""

import copy
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from brevitas_multiquant.errors import UnsupportedModelError

_OWN = ("_parameters", "_buffers", "_modules")


def deep_copy(modules: Any, memo: dict[int, Any]) -> Any:
    """``copy.deepcopy`` of a module, or of a tuple with modules in it.

    A tensor with a history that a module keeps as an attribute (a feature of the last forward, a
    weight that a hook computes) is copied without the history.

    Args:
        modules: what to copy.
        memo: id of an object -> what stands for it in the copy; filled on the way.

    Raises:
        UnsupportedModelError: attributes that cannot be copied, each by name.

    Example:
        >>> import torch
        >>> layer = nn.Linear(2, 2)
        >>> layer.last = layer(torch.ones(1, 2))
        >>> deep_copy(layer, {}).last.requires_grad
        False
    """
    for tensor in kept_tensors(modules):
        if id(tensor) not in memo:
            memo[id(tensor)] = tensor.detach().clone()
    try:
        return copy.deepcopy(modules, memo)
    except Exception as error:  # whatever the class of an attribute says of being copied
        reasons = [reason for root in _roots(modules) for reason in _not_copied(root, dict(memo))]
        if not reasons:
            raise
        raise UnsupportedModelError(type(_roots(modules)[0]).__name__, reasons) from error


def kept_tensors(modules: Any) -> Iterator[Tensor]:
    """Tensors with a history that modules keep as attributes; torch copies none of them."""
    for root in _roots(modules):
        for module in root.modules():
            for name, value in vars(module).items():
                if name not in _OWN:
                    yield from _with_history(value)


def _roots(modules: Any) -> list[nn.Module]:
    parts = modules if isinstance(modules, tuple) else (modules,)
    return [part for part in parts if isinstance(part, nn.Module)]


def _with_history(value: Any, depth: int = 3) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        if not value.is_leaf:
            yield value
    elif depth and isinstance(value, (list, tuple, set, Mapping)):
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from _with_history(item, depth - 1)


def _not_copied(root: nn.Module, memo: dict[int, Any]) -> Iterator[str]:
    for path, module in root.named_modules():
        for name, value in vars(module).items():
            if name in _OWN:
                continue
            try:
                copy.deepcopy(value, dict(memo))
            except Exception as error:
                where = f"{path}.{name}".lstrip(".")
                yield (
                    f"{where} is a {type(value).__name__}, which cannot be copied ({error}): "
                    "expected attributes that each branch can have a copy of; delete it before "
                    "(del), make it when it is needed, or keep it outside of the module"
                )
