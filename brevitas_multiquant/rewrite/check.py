"""Act 5, self-check: with quantizers off, a branch is the original model, to the bit."""

import copy
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from brevitas_multiquant.errors import SelfCheckError
from brevitas_multiquant.nn.network import MultiQuantNet
from brevitas_multiquant.quant.layers import WEIGHTED

_SEED = 20230508


def self_check(net: MultiQuantNet, model: nn.Module, input_shape: tuple[int, ...]) -> None:
    """Compare the first branch with the original, in evaluation and in seeded training mode.

    Runs on copies: neither the network nor the model is changed, nor the global random state.

    Raises:
        SelfCheckError: outputs differ by a bit; names the first layer that differs.
    """
    generator = torch.Generator().manual_seed(_SEED)
    images = torch.randn((2, *input_shape[1:]), generator=generator).to(next(net.parameters()))
    active, stem, branch, head = copy.deepcopy((net._active, net.stem, net.branches[0], net.head))
    active.quantized = False
    active.bits = next(b for b, chosen in net.selection.items() if 0 in chosen)
    ours, theirs = nn.Sequential(stem, branch, head), copy.deepcopy(model)
    for training in (False, True):
        ours.train(training)
        theirs.train(training)
        mine, my_layers = _run(ours, images, lambda name: name.partition(".")[2])
        reference, layers = _run(theirs, images, lambda name: name)
        if not torch.equal(mine, _logits(reference)):
            mode = "training" if training else "evaluation"
            raise SelfCheckError(
                f"{type(model).__name__}: expected one branch with quantizers off to equal the "
                f"original to the bit in {mode} mode, got a difference of "
                f"{(mine - _logits(reference)).abs().max():.3g}, first at "
                f"{_first_difference(my_layers, layers)}; the model was not changed"
            )


def _logits(output: object) -> Tensor:
    """The logits where a model returns auxiliary ones beside them in training."""
    return output if isinstance(output, Tensor) else output[0]  # type: ignore[index]


def _run(
    module: nn.Module, images: Tensor, name_of: Callable[[str], str]
) -> tuple[Tensor, dict[str, Tensor]]:
    """Output, and the output of every layer by the author's name."""
    layers: dict[str, Tensor] = {}
    hooks = [
        layer.register_forward_hook(partial(_keep_first, layers, name_of(name)))
        for name, layer in module.named_modules()
        if isinstance(layer, WEIGHTED)
    ]
    devices = [images.device] if images.is_cuda else []
    with torch.random.fork_rng(devices=devices), torch.no_grad():
        torch.manual_seed(_SEED)
        output = module(images)
    for hook in hooks:
        hook.remove()
    return output, layers


def _keep_first(
    layers: dict[str, Tensor], name: str, _module: nn.Module, _inputs: object, output: Tensor
) -> None:
    layers.setdefault(name, output.clone())  # the original may change it in place afterwards


def _first_difference(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> str:
    for name, output in theirs.items():
        if name in ours and not torch.equal(ours[name], output):
            return name
    return "an operation after the last layer"
