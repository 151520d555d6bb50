"""Numbers that went wrong: where they are not finite, which ranges and branches are of no use."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from brevitas_multiquant import MultiQuantNet
from brevitas_multiquant.core.clip_gradient import guarded_upper
from brevitas_multiquant.quant.ranges import LearnedRange
from brevitas_multiquant.recipes.network.modes import evaluating
from brevitas_multiquant.recipes.network.protocols import RunsAtBits
from brevitas_multiquant.recipes.network.training_forwards import branches_of


def non_finite_tensor(module: nn.Module) -> str | None:
    """The first parameter or buffer with a value that is not finite, by its full name."""
    for name, value in module.state_dict().items():
        if value.is_floating_point() and not value.isfinite().all():
            return name
    return None


def first_fault(net: RunsAtBits, images: Tensor) -> str | None:
    """Where numbers first stop being finite when the network runs on ``images``, in words.

    Runs every bit-width in the present mode and looks at each module in the order of execution:
    first at what it holds, then at what it gives out.
    """
    names = {module: name for name, module in net.named_modules()}
    faults: list[str] = []

    def held(module: nn.Module, _: object) -> None:
        for name, value in [*module._parameters.items(), *module._buffers.items()]:
            if not faults and _is_bad(value):
                faults.append(f"{names.get(module)}.{name}{_at(net)}")

    def given(module: nn.Module, _: object, output: object) -> None:
        outputs = output if isinstance(output, tuple) else (output,)
        if not faults and any(_is_bad(value) for value in outputs):
            faults.append(f"the output of {names.get(module) or 'the network'}{_at(net)}")

    handles = [
        handle
        for module in net.modules()
        for handle in (
            module.register_forward_pre_hook(held),
            module.register_forward_hook(given),
        )
    ]
    try:
        with torch.no_grad():
            for _ in _each_bit_width(net):
                net(images)
                if faults:
                    return faults[0]
    finally:
        for handle in handles:
            handle.remove()
    return None


def collapsed_ranges(net: nn.Module) -> list[str]:
    """Ranges whose u has come down to l, so that only the guard keeps them open."""
    return [
        name
        for name, module in net.named_modules()
        if isinstance(module, LearnedRange)
        and bool(module.upper <= guarded_upper(module.lower, module.lower))
    ]


@torch.no_grad()
def dead_branches(net: MultiQuantNet, images: Tensor) -> list[str]:
    """Branches that give the same output for every image, as ``branches.1 at 2 bits``."""
    dead: list[str] = []
    if len(images) < 2:
        return dead

    def look(name: str, output: Tensor) -> None:
        if torch.equal(output, output[:1].expand_as(output)):
            dead.append(f"{name} at {net.active_bits} bits")

    handles = [
        branch.register_forward_hook(lambda _module, _inputs, output, name=name: look(name, output))
        for name, branch in branches_of(net).items()
    ]
    try:
        with evaluating(net):
            for _ in _each_bit_width(net):
                net(images)
    finally:
        for handle in handles:
            handle.remove()
    return dead


def _is_bad(value: object) -> bool:
    return (
        isinstance(value, Tensor) and value.is_floating_point() and not bool(value.isfinite().all())
    )


def _at(net: RunsAtBits) -> str:
    return "" if net.active_bits is None else f" at {net.active_bits} bits"


def _each_bit_width(net: RunsAtBits) -> Iterator[None]:
    """One turn for each bit-width, largest first as in a training step."""
    for bits in reversed(net.bits):
        with net.at_bits(bits):
            yield
