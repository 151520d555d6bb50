"""What comes in: the model as it is at hand, unwrapped, checked, its computed weights plain.

Whatever a branch could not keep is refused here by name, before anything is traced: hooks, tied
weights, half precision, lazy, scripted and exported modules.
"""

import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from brevitas_multiquant.errors import UnsupportedModelError
from brevitas_multiquant.nn.network import MultiQuantNet
from brevitas_multiquant.rewrite.graph.trace import copy_sharing_parameters
from brevitas_multiquant.rewrite.intake.plain_weights import (
    HOOKS,
    has_computed_weights,
    plain_weights,
)
from brevitas_multiquant.rewrite.intake.ties import tied_parameters

PRECISIONS = (torch.float32, torch.float64)
"""What the parameters of a model may be."""


@dataclass(frozen=True)
class Intake:
    """A model that can be traced.

    Args:
        model: the user's, or a copy that shares its parameters where something had to change.
        notes: what changed, for the plan.
    """

    model: nn.Module
    notes: list[str] = field(default_factory=list)


def take_in(model: nn.Module) -> Intake:
    """Unwrap and check a model; it is not changed.

    Raises:
        UnsupportedModelError: not a float model that branches can be made of; lists every reason.
    """
    if not isinstance(model, nn.Module):
        raise UnsupportedModelError(type(model).__name__, [_no_module(model)])
    notes = []
    while (wrapped := _wrapped(model)) is not None:
        notes.append(f"the model was taken out of its {type(model).__name__}")
        model = wrapped
    reasons = [reason for path, module in model.named_modules() for reason in _kind(path, module)]
    if reasons:
        raise UnsupportedModelError(type(model).__name__, reasons)
    reasons = [*_precision(model), *tied_parameters(model), *_hooks(model)]
    if reasons:
        raise UnsupportedModelError(type(model).__name__, reasons)
    if has_computed_weights(model) or any(_wrapped(module) for module in model.modules()):
        model = copy_sharing_parameters(model)
        notes += [*_unwrap_inside(model), *plain_weights(model)]
    return Intake(model, notes)


def _no_module(model: Any) -> str:
    got = f"expected a torch.nn.Module, got {type(model).__name__}"
    if isinstance(model, type):
        return f"expected a torch.nn.Module, got the class {model.__name__}; make one: build it"
    if type(model).__name__ == "ExportedProgram":
        return f"{got} of torch.export: pass the model that was exported"
    return got


def _wrapped(module: nn.Module) -> nn.Module | None:
    """The module in one that only runs it elsewhere, or compiled."""
    if isinstance(module, (DataParallel, DistributedDataParallel)):
        return module.module  # type: ignore[no-any-return]
    if _is_of(module, "torch._dynamo.eval_frame", "OptimizedModule"):
        return module._orig_mod  # type: ignore[return-value]
    return None


def _is_of(module: nn.Module, place: str, name: str) -> bool:
    """Whether a module is of a type of a library part, which is loaded if there is such a one."""
    kind = getattr(sys.modules.get(place), name, None)
    return isinstance(kind, type) and isinstance(module, kind)


def _unwrap_inside(module: nn.Module, prefix: str = "") -> Iterator[str]:
    for name, child in module.named_children():
        inner = child
        while (wrapped := _wrapped(inner)) is not None:
            inner = wrapped
        if inner is not child:
            setattr(module, name, inner)
            yield f"{prefix}{name} was taken out of its {type(child).__name__}"
        yield from _unwrap_inside(inner, f"{prefix}{name}.")


def _kind(path: str, module: nn.Module) -> Iterator[str]:
    where = path or "the model"
    kind = type(module)
    if isinstance(module, MultiQuantNet):
        yield f"{where} is a multi-branch network already; pass the float model"
    elif kind.__module__.startswith("brevitas."):
        yield f"{where} is a Brevitas layer already; start from the float model"
    elif isinstance(module, torch.jit.ScriptModule):
        yield (
            f"{where} is TorchScript (torch.jit.script or trace), which has no layers to replace; "
            "pass the module that was scripted"
        )
    elif isinstance(module, fx.GraphModule) and _is_exported(module):
        yield (
            f"{where} was made by torch.export: a graph of operators without layers; pass the "
            "model that was exported"
        )
    elif _is_of(module, "torch.distributed.fsdp", "FullyShardedDataParallel"):
        yield (
            f"{where} is a FullyShardedDataParallel, which keeps pieces of parameters; pass the "
            "plain model, and wrap the network instead"
        )
    elif any(nn.parameter.is_lazy(p) for p in (*module._parameters.values(), *_buffers(module))):
        yield (
            f"{where} is a lazy {kind.__name__}: its parameters are uninitialised until it has "
            "run; call the model on an image once before"
        )


def _buffers(module: nn.Module) -> Iterable[Any]:
    return module._buffers.values()


def _is_exported(module: fx.GraphModule) -> bool:
    return any(isinstance(node.target, torch._ops.OpOverload) for node in module.graph.nodes)


def _precision(model: nn.Module) -> Iterator[str]:
    others = {
        parameter.dtype: name
        for name, parameter in reversed(list(model.named_parameters()))
        if (parameter.is_floating_point() or parameter.is_complex())
        and parameter.dtype not in PRECISIONS
    }
    for dtype, name in others.items():
        yield (
            f"{name} is {dtype}: expected float32 parameters, since codes are added up exactly in "
            "them; call model.float() before, and train under torch.autocast for speed"
        )


_HOOKS = {
    "_forward_hooks": "a forward hook",
    "_forward_pre_hooks": "a hook before its forward",
    "_backward_hooks": "a backward hook",
    "_backward_pre_hooks": "a hook before its backward",
}
_TENSOR_HOOKS = ("_backward_hooks", "_post_accumulate_grad_hooks")


def _hooks(model: nn.Module) -> Iterator[str]:
    """Hooks on what branches have copies of: they would not run there, or several times."""
    if _is_of(model, "timm.models._features", "FeatureHookNet"):
        yield (
            "timm collects its features by hooks: expected none, since each branch has modules of "
            "its own; build it with timm.create_model(..., features_only=True, "
            "feature_cls='getter'), which gives the same features"
        )
        return
    advice = (
        "expected none, since each branch has modules of its own; remove it before "
        "(handle.remove()), and register it on the network's modules afterwards"
    )
    for path, module in model.named_modules():
        for attribute, kind in _HOOKS.items():
            for hook in getattr(module, attribute).values():
                if not isinstance(hook, HOOKS):
                    yield f"{path or 'the model'} has {kind} ({_name_of(hook)}): {advice}"
    for name, parameter in model.named_parameters():
        if any(getattr(parameter, attribute, None) for attribute in _TENSOR_HOOKS):
            yield f"{name} has a hook on its gradient: {advice}"


def _name_of(hook: Any) -> str:
    return getattr(hook, "__qualname__", type(hook).__name__)  # type: ignore[no-any-return]
