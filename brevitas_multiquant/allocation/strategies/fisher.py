"""What the loss loses, to second order, with the Fisher information for the Hessian: one backward.

Of a layer's output y and its change d by quantization: the sum over outputs and images of
(dL/dy d)^2 (NVIDIA Model Optimizer's auto_quantize). One backward of the float network serves all
bit-widths; each layer alone runs again for each of them.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from brevitas_multiquant.allocation.problem import Problem
from brevitas_multiquant.allocation.sites import Width
from brevitas_multiquant.allocation.strategies.samples import labelled, on
from brevitas_multiquant.allocation.strategies.simulate import Simulation
from brevitas_multiquant.nn.network import device_of
from brevitas_multiquant.quant.layers import CodeLayer

Call = tuple[CodeLayer, Tensor, Tensor]
"""A layer, what it read, what it gave."""


def sensitivity(problem: Problem, data: object, samples: int) -> dict[Width, dict[int, float]]:
    """The sum of (dL/dy d)^2 an image, of each width at each of its candidates.

    Args:
        problem: what can be chosen.
        data: batches (images, labels).
        samples: how many images.

    Raises:
        CalibrationError: no data, or data without labels.
    """
    run = Simulation(problem.sites)
    found = {width: dict.fromkeys(of, 0.0) for width, of in problem.candidates.items()}
    site_of = {layer: site for site, layers in run.layers.items() for layer in layers}
    kinds = sorted({kind for _, kind in problem.same})
    count, device = 0, device_of(run.net)
    for batch in labelled(data, "fisher", samples):
        images, labels = on(device, *batch)
        count += len(images)
        with run.net.floating(), torch.enable_grad(), _calls(run) as calls:
            logits = run.net(images.detach().requires_grad_())
            loss = F.cross_entropy(logits, labels, reduction="sum")
            grads = torch.autograd.grad(loss, [given for *_, given in calls])
        with run.net.floating(), torch.no_grad():
            for call, grad in zip(calls, grads, strict=True):
                layer, read, given = call
                for kind in kinds:
                    width = (site_of[layer], kind)
                    losses = found[problem.same[width]]
                    for bits in losses:
                        with run.quantizing(width, bits):
                            change = layer(read) - given
                        losses[bits] += float((grad * change).square().sum())
    return {w: {bits: one / count for bits, one in of.items()} for w, of in found.items()}


@contextmanager
def _calls(run: Simulation) -> Iterator[list[Call]]:
    """Inside the block, every call of a layer."""
    calls: list[Call] = []

    def note(layer: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        calls.append((layer, inputs[0].detach(), output))

    layers = [layer for of in run.layers.values() for layer in of]
    hooks = [layer.register_forward_hook(note) for layer in layers]
    try:
        yield calls
    finally:
        for hook in hooks:
            hook.remove()
