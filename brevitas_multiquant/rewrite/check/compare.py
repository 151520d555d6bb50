"""Act 5, self-check: with quantizers off, a branch is the original model, to the bit."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from brevitas_multiquant.core.output_structure import OutputStructure, run_part
from brevitas_multiquant.errors import SelfCheckError
from brevitas_multiquant.nn.modes import restore_fixed
from brevitas_multiquant.nn.network import MultiQuantNet
from brevitas_multiquant.quant.layers import WEIGHTED
from brevitas_multiquant.quant.ranges import LearnedRange
from brevitas_multiquant.rewrite.check.behaviour import (
    draws_unseeded,
    random_state,
    seeded,
    state_of,
)
from brevitas_multiquant.rewrite.check.inlined import Inlined
from brevitas_multiquant.rewrite.graph.kinds import LAYERS
from brevitas_multiquant.rewrite.graph.trace import copy_sharing_parameters
from brevitas_multiquant.rewrite.plan import Plan

_SEED = 20230508
_RUNS = 16
"""Training runs of a model some code of which decides by its mode, or keeps a feature."""

MOVE = (
    "move what depends on self.training, on random numbers or on a count into a module of its "
    "own, without layers"
)
"""What the author can do about a forward whose behaviour in training a trace loses."""


def self_check(
    net: MultiQuantNet, model: nn.Module, input_shape: tuple[int, ...]
) -> dict[str, str]:
    """Compare the first branch with the original, in evaluation and in seeded training mode.

    In training mode the random draws and the changes that modules make to their own state are
    compared, too. Runs on copies that share the parameters: neither the network nor the model is
    changed, nor the global random state.

    Returns:
        Modules whose behaviour in training the trace has lost -> what; none if nothing is lost.

    Raises:
        SelfCheckError: outputs differ by a bit, naming the first layer that differs; or one of the
            two does not run, or has weights that are not finite.
    """
    _check_finite(net, type(model).__name__)
    generator = torch.Generator().manual_seed(_SEED)
    images = torch.randn((2, *input_shape[1:]), generator=generator).to(next(net.parameters()))
    ours, theirs = _one_branch(net), copy_sharing_parameters(model)
    for training in (False, True):
        ours.train(training)
        restore_fixed(ours)
        theirs.train(training)
        for module in _left_out(theirs, net.plan):
            module.eval()  # its dropout would draw random numbers between ours
        before = state_of(theirs)
        inlined = Inlined(theirs, ours)
        lost = _compare(ours, theirs, images, inlined)
        lost |= inlined.changed(before, state_of(theirs)) if training else {}
        if "" in lost:
            raise SelfCheckError(
                f"{type(model).__name__}: expected a forward that a trace can stand for in "
                f"training, got another; the model was not changed{_advice(lost)}"
            )
        if lost:
            return lost
    net.plan.notes += ours.notes
    return {}


def _compare(
    ours: "_OneBranch", theirs: nn.Module, images: Tensor, inlined: Inlined
) -> dict[str, str]:
    """Modules that a difference in training mode comes from, or may where runs do not repeat."""
    training = theirs.training
    run = partial(_run, theirs, images, "the model itself")
    if training and any(map(draws_unseeded, theirs.modules())):
        return inlined.suspects(run, images.device)
    for seed in _seeds(training and inlined.may_decide()):
        mine, drawn = _run(ours, images, "one branch", seed)
        reference, wanted = run(seed)
        reference = ours.structure.part_of(reference) if training else reference
        if drawn == wanted and _equal(mine, reference):
            continue
        if training and drawn == wanted and (place := _place_in(mine, reference)) is not None:
            ours.notes.append(_RETURNS_LESS.format(place=place))
            return {}
        lost = inlined.lost(run, images.device) if training else {}
        if lost and "" not in lost:
            return lost
        raise SelfCheckError(
            f"{type(theirs).__name__}: expected one branch with quantizers off to equal the "
            f"original to the bit in {'training' if training else 'evaluation'} mode, got "
            f"{_difference(mine, reference)}, first at "
            f"{_first_difference(ours, theirs, images)}; the model was not changed"
            f"{_advice(lost) if training else _CHANCE if drawn != wanted else ''}"
        )
    return {}


def _seeds(many: bool) -> range:
    return range(_SEED, _SEED + (_RUNS if many else 1))


def _advice(lost: Mapping[str, str]) -> str:
    """What to do where the model's own forward, which cannot be kept, does something beside."""
    does = f" Its forward {lost['']}." if "" in lost else ""
    return f".{does} {MOVE[0].upper()}{MOVE[1:]}: that is kept as it is"


_CHANCE = (
    ". It draws random numbers in evaluation, too: a dropout that is made in the forward is always "
    "in training mode, make it in the constructor"
)


def _check_finite(net: MultiQuantNet, model: str) -> None:
    parts = (net.stem, net.branches[0], net.head)
    damaged = [
        f"{name} ({int((~value.isfinite()).sum())} of {value.numel()})"
        for part in parts
        for name, value in part.named_parameters()
        if not isinstance(part.get_submodule(name.rpartition(".")[0]), LearnedRange)
        and not value.isfinite().all()
    ]
    if damaged:
        raise SelfCheckError(
            f"{model}: expected finite weights, got infinite ones or ones that are not a number in "
            f"{', '.join(damaged)}; its training diverged, or its file is damaged"
        )


class _OneBranch(nn.Sequential):
    """Stem, a branch and head of a network."""

    structure: OutputStructure
    notes: list[str]

    def forward(self, x: Any) -> Any:
        """What they give together."""
        for part in self:
            x = run_part(part, x)
        return x if self.structure.is_one_tensor else self.structure.rebuild(x)


def _one_branch(net: MultiQuantNet) -> _OneBranch:
    """The first branch with quantizers off."""
    parts = (net._active, net.stem, net.branches[0], net.head)
    active, stem, branch, head = copy_sharing_parameters(parts)
    active.quantized = False
    active.bits = next(bits for bits in net.bits if net.branches[0] in net.branches_at(bits))
    parts_in_order = _OneBranch(stem, branch, head)
    parts_in_order.structure, parts_in_order.notes = net.structure, []
    return parts_in_order


def _left_out(model: nn.Module, plan: Plan) -> Iterable[nn.Module]:
    """Modules all of whose layers run in training only: auxiliary heads."""
    layers = {model.get_submodule(row.name) for row in plan.layers if row.part == "-"}
    for module in model.modules() if layers else ():
        inner = {m for m in module.modules() if isinstance(m, LAYERS)}
        if inner and inner <= layers:
            yield module


def _run(
    module: nn.Module, images: Tensor, who: str, seed: int = _SEED
) -> tuple[Any, tuple[Any, ...]]:
    """What a module gives; where random draws ended."""
    mode = "training" if module.training else "evaluation"
    try:
        with seeded(seed, images.device), torch.no_grad():
            output = module(images)
            drawn = random_state(images.device)
    except Exception as error:
        raise SelfCheckError(
            f"expected {who} to run in {mode} mode on images of shape {tuple(images.shape)}, got "
            f"{type(error).__name__}: {error}"
        ) from error
    return output, drawn


def _equal(mine: Any, reference: Any) -> bool:
    """Whether two outputs are the same containers of the same tensors, to the bit."""
    return _difference(mine, reference) == _ONLY_DRAWS


_ONLY_DRAWS = "other random draws with the same output"


_RETURNS_LESS = (
    "the model returns only a part of its output while it trains ({place}): the network returns "
    "all of it in both modes, so that a loss reads that part"
)


def _place_in(mine: Any, reference: Any, place: str = "output") -> str | None:
    """Where an output stands in ours, as a detector's maps stand beside boxes made of them."""
    parts: Iterable[tuple[Any, Any]] = ()
    if isinstance(mine, Mapping):
        parts = mine.items()
    elif isinstance(mine, Sequence):
        parts = enumerate(mine)
    for key, part in parts:
        inner = f"{place}[{key!r}]"
        if _equal(part, reference):
            return inner
        if (found := _place_in(part, reference, inner)) is not None:
            return found
    return None


def _difference(mine: Any, reference: Any) -> str:
    """What is another in two outputs."""
    ours, theirs = OutputStructure.of(mine), OutputStructure.of(reference)
    if ours != theirs:
        return f"{ours} for {theirs}"
    for where, one, other in zip(
        ours.names, ours.tensors(mine), theirs.tensors(reference), strict=True
    ):
        place = "" if ours.is_one_tensor else f" in {where}"
        if one.shape != other.shape:
            return f"shape {tuple(one.shape)} for {tuple(other.shape)}{place}"
        if not torch.equal(one, other):
            return f"a difference of {(one - other).abs().max():.3g}{place}"
    return _ONLY_DRAWS


def _first_difference(ours: nn.Module, theirs: nn.Module, images: Tensor) -> str:
    """Name of the first layer whose output differs, in another run of both."""
    mine = _outputs_of_layers(ours, images, lambda name: name.partition(".")[2])
    for name, output in _outputs_of_layers(theirs, images, lambda name: name).items():
        if name in mine and not torch.equal(mine[name], output):
            return name
    return "an operation after the last layer"


def _outputs_of_layers(
    module: nn.Module, images: Tensor, name_of: Callable[[str], str]
) -> dict[str, Tensor]:
    """The first output of every layer by the author's name."""
    layers: dict[str, Tensor] = {}
    hooks = [
        layer.register_forward_hook(partial(_keep_first, layers, name_of(name)))
        for name, layer in module.named_modules()
        if isinstance(layer, WEIGHTED)
    ]
    try:
        _run(module, images, "it")
    finally:
        for hook in hooks:
            hook.remove()
    return layers


def _keep_first(
    layers: dict[str, Tensor], name: str, _module: nn.Module, _inputs: object, output: Tensor
) -> None:
    layers.setdefault(name, output.clone())  # the original may change it in place afterwards
