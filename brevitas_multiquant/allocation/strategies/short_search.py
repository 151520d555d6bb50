"""A search during training as a strategy: a short one from float weights, for its bits alone."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from brevitas_multiquant.allocation.problem import Problem
from brevitas_multiquant.allocation.search_task import Search
from brevitas_multiquant.allocation.solve import Found
from brevitas_multiquant.allocation.strategies.samples import labelled, on
from brevitas_multiquant.core.selection import is_whole
from brevitas_multiquant.errors import ConfigError
from brevitas_multiquant.methods.convert import multiquantize
from brevitas_multiquant.methods.settle import INDIVIDUAL
from brevitas_multiquant.nn.network import MultiQuantNet, device_of
from brevitas_multiquant.training.calibrate import calibrate

STEPS = 500
LR, MOMENTUM, RANGE_LR = 0.01, 0.9, 1e-3
"""Of weights that start trained."""


def short_search(
    problem: Problem,
    model: nn.Module,
    conversion: Mapping[str, Any],
    data: Any,
    samples: int,
    *,
    strategy: str,
    make: Callable[[MultiQuantNet, Problem], Search],
    steps: int = STEPS,
    seed: int = 0,
) -> Found:
    """Bits that a network finds in a few hundred updates, from trained float weights.

    The whole training, which goes on with these bits, is ``brevitas-multiquant search``, or a
    `brevitas_multiquant.allocation.search_task.Search` in a loop of one's own.

    Args:
        problem: what can be chosen.
        model: the float model; not changed.
        conversion: options of ``multiquantize``.
        data: batches (images (N, C, H, W), labels (N,)).
        samples: how many images are trained on, again and again.
        strategy: whose they are, for errors.
        make: network, problem -> the search.
        steps: updates.
        seed: of what is drawn.

    Warns:
        UniformBitsWarning: it ended at uniform bits.

    Raises:
        CalibrationError: data without labels.
        ConfigError: no whole number of steps.
    """
    if not is_whole(steps) or steps < 1:
        raise ConfigError(f"steps: expected at least 1, got {steps!r}")
    if problem.unit == "luts":
        conversion = {"profile": "finn", **conversion}
    batches = labelled(data, strategy, samples)
    most = max(max(of) for of in problem.candidates.values())
    net = multiquantize(model, [most], method=INDIVIDUAL, check=False, **conversion).train()
    calibrate(net, [images for images, _ in batches])
    search = make(net, problem)
    weights = torch.optim.SGD(net.model_parameters(), LR, MOMENTUM)
    ranges = torch.optim.Adam(net.range_parameters(), RANGE_LR)
    for step in range(steps):
        images, labels = on(device_of(net), *batches[step % len(batches)])
        for optimizer in (weights, ranges):
            optimizer.zero_grad()
        search.at(0, 1, step, seed)
        search(images, labels)["loss"].backward()
        for optimizer in (weights, ranges):
            optimizer.step()
        search.update_bits(step / steps)
    chosen, _ = search.found()
    return Found(chosen)
