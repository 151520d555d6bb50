"""What any method has to do with any network: one check, and the methods with options to try."""

from collections.abc import Iterator
from itertools import cycle
from typing import Any

import torch
from torch import Tensor, nn

from brevitas_multiquant import (
    Assignment,
    MultiQuantNet,
    calibrate,
    extract_subnet,
    multiquantize,
)
from brevitas_multiquant.methods.objectives import objective_of
from brevitas_multiquant.nn.switchable import Switchable
from brevitas_multiquant.quant.layers import CodeLayer

ONE_BODY: dict[str, dict[str, Any]] = {
    "individual": {"bits": [3], "method": "individual"},
    "adabits": {"bits": [2, 8], "method": "adabits"},
    # At 2 bits its weights have a mean below 0: in networks as deep as cspnext_tiny all values of a
    # channel end up equal, and norms multiply gradients with 1 / sqrt(eps) until they overflow.
    "adabits as published": {
        **{"bits": [3, 8], "method": "adabits"},
        **{"grid": "modified", "weight_range": "tanh"},
    },
    "any_precision": {"bits": [1, 4], "method": "any_precision"},
    "double_rounding": {"bits": [2, 3, 4], "method": "double_rounding"},
    "bit_mixer": {"bits": [2, 4], "method": "bit_mixer"},
}
"""Name -> options of `multiquantize`."""


def check(model: nn.Module, shape: tuple[int, ...], options: dict[str, Any]) -> None:
    """It converts, calibrates, runs at every bit-width and mixed, is extracted, and trains a step.

    The conversion compares it with the float model to the bit; the subnets are compared here.
    """
    net = multiquantize(model, input_shape=shape, **options)
    images = torch.randn(2, *shape[1:])
    calibrate(net, [images])
    net.eval()
    layers = [module for module in net.modules() if isinstance(module, CodeLayer)]
    assert layers and len(net.branches) == 1
    for bits in net.bits:
        with torch.no_grad(), net.at_bits(bits):
            logits = net(images)
            assert logits.isfinite().all()
            assert len({layer.weight_format for layer in layers}) == 1
            assert layers[0].weight_format.levels < 2**bits
            assert torch.equal(extract_subnet(net, bits)(images), logits)
    if len(net.bits) > 1:
        _check_mixed(net, images)
    task = objective_of(net.train())
    task.at(epoch=0, epochs=2, step=0)
    update = {"update": lambda bits: None} if task.updates_after_each else {}
    out = task.step(images, torch.arange(2), **update)
    assert sorted(out["outputs"]) == list(net.bits)
    of_mixed_pairs = set(_norms_of_mixed_pairs(net))
    for name, parameter in net.named_parameters():
        if parameter.requires_grad and parameter not in of_mixed_pairs:
            assert parameter.grad is not None and parameter.grad.isfinite().all(), name


@torch.no_grad()
def _check_mixed(net: MultiQuantNet, images: Tensor) -> None:
    """Sites at bits of their own, one after the other."""
    own = {site: (bits, bits) for site, bits in zip(net.sites, cycle(net.bits), strict=False)}
    mixed = Assignment(net.bits[-1], own)
    with net.at_bits(mixed):
        logits = net(images)
    assert logits.isfinite().all()
    assert torch.equal(extract_subnet(net, mixed)(images), logits)


def _norms_of_mixed_pairs(net: MultiQuantNet) -> Iterator[nn.Parameter]:
    """Parameters that run where neighbours have different bits alone, as in Bit-Mixer."""
    for module in net.modules():
        if isinstance(module, Switchable):
            for key, member in module.items():
                if len(set(key.split("_"))) > 1:
                    yield from member.parameters()
