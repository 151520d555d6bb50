"""Weights that are computed from others before each forward, as plain parameters.

``weight_norm``, ``spectral_norm`` and ``prune`` of torch.nn.utils, and any parametrization: what
the layer multiplies with is not what it stores. A branch starts from what the layer would multiply
with in evaluation, as a parameter of its own.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune
from torch.nn.utils.spectral_norm import (
    SpectralNorm,
    SpectralNormLoadStateDictPreHook,
    SpectralNormStateDictHook,
)
from torch.nn.utils.weight_norm import WeightNorm

HOOKS = (WeightNorm, SpectralNorm, prune.BasePruningMethod)
"""Hooks before a forward that compute a weight: `plain_weights` knows what they give."""

_STATE_HOOKS = (SpectralNormStateDictHook, SpectralNormLoadStateDictPreHook)
_TRAINED = "the branches start from it as it is in evaluation and train the tensor itself"
_PRUNED = (
    "the branches start from what its mask leaves; the mask is not kept, training may fill the "
    "zeros, and weight formats without a 0 (weights='odd') have no code for them"
)


def has_computed_weights(model: nn.Module) -> bool:
    """Whether a module of the model computes a weight before its forward."""
    return any(
        parametrize.is_parametrized(module)
        or any(isinstance(hook, HOOKS) for hook in module._forward_pre_hooks.values())
        for module in model.modules()
    )


def plain_weights(model: nn.Module) -> list[str]:
    """Turn every computed weight into a parameter, in place.

    Args:
        model: a copy, which may share its parameters: they are not changed.

    Returns:
        What was done, for the plan's notes.
    """
    notes = []
    for path, module in model.named_modules():
        for kind, name in [*_from_hooks(module), *_from_parametrizations(module)]:
            meaning = _PRUNED if issubclass(kind, prune.BasePruningMethod) else _TRAINED
            where = f"{path}.{name}".lstrip(".")
            notes.append(f"{where} was computed by {kind.__name__}: {meaning}")
    return notes


def _from_hooks(module: nn.Module) -> Iterator[tuple[type, str]]:
    for key, hook in list(module._forward_pre_hooks.items()):
        if isinstance(hook, HOOKS):
            name, compute = _computation(hook, module)
            _replace(module, name, _sources(module, name), compute)
            del module._forward_pre_hooks[key]
            yield type(hook), name
    for hooks in (module._state_dict_hooks, module._load_state_dict_pre_hooks):
        for key in [key for key, hook in hooks.items() if _is_state_hook(hook)]:
            del hooks[key]


def _is_state_hook(hook: Any) -> bool:
    return isinstance(getattr(hook, "hook", hook), _STATE_HOOKS)


def _computation(hook: Any, module: nn.Module) -> tuple[str, Callable[[], Tensor]]:
    """Which tensor a hook sets, and what to."""
    if isinstance(hook, prune.BasePruningMethod):
        name: str = hook._tensor_name  # type: ignore[attr-defined]
        return name, lambda: hook.apply_mask(module)
    if isinstance(hook, SpectralNorm):
        return hook.name, lambda: hook.compute_weight(module, do_power_iteration=False)
    return hook.name, lambda: hook.compute_weight(module)


def _sources(module: nn.Module, name: str) -> list[str]:
    """Names of the tensors that a hook computes ``name`` from."""
    made = {f"{name}_{suffix}" for suffix in ("orig", "mask", "g", "v", "u")}
    return [key for key in (*module._parameters, *module._buffers) if key in made]


def _from_parametrizations(module: nn.Module) -> Iterator[tuple[type, str]]:
    if not parametrize.is_parametrized(module):
        return
    parametrizations: Any = module.parametrizations
    parametrizations.eval()
    names = list(parametrizations)
    trained = [any(p.requires_grad for p in parametrizations[n].parameters()) for n in names]
    with torch.no_grad():
        values = [getattr(module, name).clone() for name in names]
    del module._modules["parametrizations"]
    module.__class__ = type(module).__bases__[0]
    for name, value, trains in zip(names, values, trained, strict=True):
        if parametrizations[name]._parameters:
            _put_first(module, name, nn.Parameter(value, requires_grad=trains))
        else:
            module.register_buffer(name, value)
        yield type(parametrizations[name][0]), name


def _replace(
    module: nn.Module, name: str, sources: list[str], compute: Callable[[], Tensor]
) -> None:
    trained = any(module._parameters[n].requires_grad for n in sources if n in module._parameters)  # type: ignore[union-attr]
    with torch.no_grad():
        value = compute().clone()
    for source in sources:
        delattr(module, source)
    vars(module).pop(name, None)
    _put_first(module, name, nn.Parameter(value, requires_grad=trained))


def _put_first(module: nn.Module, name: str, parameter: nn.Parameter) -> None:
    """In the place that a weight has in a layer that was never changed."""
    others = dict(module._parameters)
    module._parameters.clear()
    module._parameters.update({name: parameter, **others})
