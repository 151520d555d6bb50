"""Deep copies of modules as their authors write them: features kept from a forward, locks."""

import copy
import copyreg
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from functools import cache
from types import FunctionType
from typing import Any

from torch import Tensor, fx, nn

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
        return copied(modules, memo)
    except Exception as error:  # whatever the class of an attribute says of being copied
        reasons = [reason for root in _roots(modules) for reason in _not_copied(root, dict(memo))]
        if not reasons:
            raise
        raise UnsupportedModelError(type(_roots(modules)[0]).__name__, reasons) from error


def copied(value: Any, memo: dict[int, Any]) -> Any:
    """What ``copy.deepcopy`` gives, in a third of its time for modules.

    A module is a dozen dictionaries of hooks, most of them empty, which ``copy.deepcopy`` takes
    apart and puts together one by one.

    Args:
        value: a module, or what a module holds.
        memo: id of an object -> what stands for it in the copy; filled on the way.

    Example:
        >>> import torch
        >>> model = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
        >>> twin = copied(model, {})
        >>> torch.equal(twin[0].weight, model[0].weight), twin[0].weight is model[0].weight
        (True, False)
    """
    kind = type(value)
    if kind in _IMMUTABLE or isinstance(value, type):
        return value
    if id(value) in memo:
        return memo[id(value)]
    if kind in _CONTAINERS:
        return _copied_container(value, memo)
    if isinstance(value, nn.Module):
        if _is_its_attributes(kind) and _TAKEN_OVER.isdisjoint(vars(value)):  # type: ignore[arg-type]
            return copied_by_attributes(value, memo)
        if isinstance(value, fx.GraphModule):  # it copies itself, and finds these in the memo
            for child in value.children():
                copied(child, memo)
    return copy.deepcopy(value, memo)


def _copied_container(value: Any, memo: dict[int, Any]) -> Any:
    """In the memo before what is in it is copied, so that it may hold itself."""
    new: Any
    if isinstance(value, tuple):
        new = tuple(copied(item, memo) for item in value)
        return memo.setdefault(id(value), new)  # a cycle through it has copied it meanwhile
    memo[id(value)] = new = type(value)()
    if isinstance(value, dict):
        new.update((copied(key, memo), copied(item, memo)) for key, item in value.items())
    elif isinstance(value, list):
        new.extend(copied(item, memo) for item in value)
    else:
        new.update(copied(item, memo) for item in value)
    return new


def copied_by_attributes(module: Any, memo: dict[int, Any]) -> Any:
    """A copy of a module whose attributes, but for what compiled it, are all there is to copy.

    Args:
        module: not yet in the memo.
        memo: as of `copied`.
    """
    memo[id(module)] = new = object.__new__(type(module))
    own = (item for item in vars(module).items() if item[0] != "_compiled_call_impl")
    vars(new).update((name, copied(value, memo)) for name, value in own)
    return new


_IMMUTABLE = frozenset({type(None), bool, int, float, str, bytes, FunctionType})
_CONTAINERS = frozenset({dict, OrderedDict, list, set, tuple})


@cache
def _is_its_attributes(kind: type[nn.Module]) -> bool:
    """Whether ``copy.deepcopy`` would make an empty module and copy attributes, no more."""
    return (
        kind.__new__ is object.__new__
        and kind.__getstate__ is nn.Module.__getstate__
        and kind.__setstate__.__module__.startswith("torch.nn.")  # for pickles of older releases
        and kind.__reduce__ is object.__reduce__
        and kind.__reduce_ex__ is object.__reduce_ex__
        and kind not in copyreg.dispatch_table
        and not any(hasattr(kind, name) for name in _HOOKS)
        and not copyreg._slotnames(kind)  # type: ignore[attr-defined]
    )


_HOOKS = ("__deepcopy__", "__getnewargs__", "__getnewargs_ex__")
_TAKEN_OVER = {*_HOOKS, "__getstate__", "__setstate__", "__reduce__", "__reduce_ex__"}
"""``copy.deepcopy`` finds these on one module, too, not only on its type."""


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
