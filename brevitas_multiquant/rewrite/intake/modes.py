"""The modes of a model's modules, carried over to the parts that are made of it.

A module in evaluation mode in a model that trains is frozen, and its copies are. A model whose own
``train()`` keeps modules in a mode is asked which, once: the parts lose the method and keep what it
does.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import nn

from brevitas_multiquant.core.copying import deep_copy
from brevitas_multiquant.errors import UnsupportedModelError
from brevitas_multiquant.nn.modes import fix_mode


@dataclass(frozen=True)
class Modes:
    """Names of modules and parameters -> their modes.

    Args:
        now: each module -> whether it is in training mode.
        fixed: modules that the model's own ``train()`` keeps in one mode -> that mode.
        frozen: parameters that its own ``train()`` stops training.
    """

    now: dict[str, bool]
    fixed: dict[str, bool] = field(default_factory=dict)
    frozen: frozenset[str] = frozenset()


def modes_of(model: nn.Module) -> Modes:
    """The modes of a model, which is not changed.

    Raises:
        UnsupportedModelError: its own ``train()`` does more than to choose modes.
    """
    now = {name: module.training for name, module in model.named_modules(remove_duplicate=False)}
    own = [name for name, m in model.named_modules() if type(m).train is not nn.Module.train]
    if not own:
        return Modes(now)
    twin = deep_copy(model, {})  # with parameters of its own: train() may change them
    trains, evaluates = ({n: m.training for n, m in _put(twin, mode)} for mode in (True, False))
    _put(twin, True)
    changed = _what_changed(model, twin)
    changed += [n for n in now if not trains.get(n, True) and evaluates.get(n, False)]
    if changed:
        raise UnsupportedModelError(
            type(model).__name__,
            [
                f"{own[0] or 'the model'} has a train() of its own that changes {changed[0]}: "
                "expected one that leaves parameters alone and keeps a module in one mode, since "
                "own train() methods are not carried over; bring the model into the form that it "
                "is to be trained in before, without the method"
            ],
        )
    fixed = {name: False for name in now if not trains[name]}
    fixed |= {name: True for name in now if evaluates[name]}
    wanted = {name for name, p in model.named_parameters() if p.requires_grad}
    frozen = {name for name, p in twin.named_parameters() if not p.requires_grad}
    return Modes(now, fixed, frozenset(wanted & frozen))


@contextmanager
def training_flags_kept(model: nn.Module) -> Iterator[None]:
    """Which parameters are trained is afterwards what it was, whatever an own ``train()`` does."""
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        yield
    finally:
        for parameter, trained in flags:
            parameter.requires_grad_(trained)


def _put(model: nn.Module, training: bool) -> list[tuple[str, nn.Module]]:
    model.train(training)
    return list(model.named_modules(remove_duplicate=False))


def _what_changed(model: nn.Module, twin: nn.Module) -> list[str]:
    """Names of modules and parameters that two copies of a model do not have in common."""
    names, others = ([n for n, _ in m.named_modules(remove_duplicate=False)] for m in (model, twin))
    values, twins = dict(model.named_parameters()), dict(twin.named_parameters())
    changed = sorted({*names} ^ {*others}) + sorted(values.keys() ^ twins.keys())
    return changed + [
        name
        for name in values.keys() & twins.keys()
        if not values[name].is_meta and not torch.equal(values[name], twins[name])
    ]


def carry_over(modes: Modes, part: nn.Module) -> None:
    """Put every module of a part into the mode of the module that it was made of or for.

    Args:
        modes: of the model.
        part: stem, branch or head, with the model's names.
    """
    for name, module in part.named_modules():
        source = _nearest(name, modes.now) or _nearest(name.partition(".")[2], modes.now)
        module.training = modes.now[source]
        if source in modes.fixed:
            fix_mode(module, modes.fixed[source])
    for name, parameter in part.named_parameters():
        if name in modes.frozen or name.partition(".")[2] in modes.frozen:
            parameter.requires_grad_(False)


def _nearest(name: str, known: dict[str, bool]) -> str:
    """The module of the model that holds what has this name; the model itself is ``""``."""
    while name not in known:
        name = name.rpartition(".")[0]
    return name
