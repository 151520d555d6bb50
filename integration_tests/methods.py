"""What any method has to do with any network: one check, and the methods with options to try."""

from typing import Any

import torch
from torch import nn

from brevitas_multiquant import calibrate, extract_subnet, multiquantize
from brevitas_multiquant.methods.objectives import objective_of
from brevitas_multiquant.quant.layers import CodeLayer

ONE_BODY: dict[str, dict[str, Any]] = {
    "individual": {"bits": [3], "method": "individual"},
    "adabits": {"bits": [2, 8], "method": "adabits"},
    "adabits as published": {
        **{"bits": [2, 8], "method": "adabits"},
        **{"grid": "modified", "weight_range": "tanh"},
    },
    "any_precision": {"bits": [1, 4], "method": "any_precision"},
    "double_rounding": {"bits": [2, 3, 4], "method": "double_rounding"},
}
"""Name -> options of `multiquantize`."""


def check(model: nn.Module, shape: tuple[int, ...], options: dict[str, Any]) -> None:
    """It converts, calibrates, runs at every bit-width, is extracted, and trains a step.

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
    task = objective_of(net.train())
    update = {"update": lambda bits: None} if task.updates_after_each else {}
    out = task.step(images, torch.arange(2), **update)
    assert sorted(out["outputs"]) == list(net.bits)
    for name, parameter in net.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None and parameter.grad.isfinite().all(), name
