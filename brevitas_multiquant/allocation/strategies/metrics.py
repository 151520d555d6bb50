"""What layers may be ordered by: rows of data, each a loss of every width at every candidate."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from brevitas_multiquant.allocation.problem import Problem
from brevitas_multiquant.allocation.sites import ACTIVATION, WEIGHT, Width
from brevitas_multiquant.allocation.strategies import fisher, kl, sqnr
from brevitas_multiquant.allocation.strategies.samples import images_of, on
from brevitas_multiquant.allocation.strategies.simulate import Simulation, weights
from brevitas_multiquant.core.devices import in_fp64
from brevitas_multiquant.core.named import row_named
from brevitas_multiquant.errors import ConfigError
from brevitas_multiquant.nn.network import device_of

Losses = dict[Width, dict[int, float]]
Metric = Callable[[Problem, Any, int], Losses]
"""(problem, data, samples) -> losses."""


def quantization_error(problem: Problem, data: Any, samples: int) -> Losses:
    """|q(x) - x|^2 / |x|^2 of weights or of what is read, each at its place: no output is run.

    Args:
        problem: of a float model.
        data: batches of images.
        samples: how many images.

    Raises:
        CalibrationError: no data.
    """
    run, device = Simulation(problem.sites), device_of(problem.sites.net)
    errors = {width: dict.fromkeys(of, 0.0) for width, of in problem.candidates.items()}
    powers = dict.fromkeys(errors, 0.0)

    def add(width: Width, x: Tensor, less: Callable[[int], Tensor]) -> None:
        first = problem.same[width]
        powers[first] += float(in_fp64(x).square().sum())
        for bits in errors[first]:
            errors[first][bits] += float(in_fp64(less(bits) - x).square().sum())

    with torch.no_grad():
        for site, layers in run.layers.items():
            for layer in layers:
                weight = layer.effective_weight()
                add((site, WEIGHT), weight, partial(weights, layer))
        for images in images_of(data, "sensitivity", samples):
            for site, x in run.read(*on(device, images)):
                width = (site, ACTIVATION)
                add(width, x, partial(run.activations, width, x=x))
    return {
        width: {bits: one / (powers[width] or 1.0) for bits, one in of.items()}
        for width, of in errors.items()
    }


METRICS: Mapping[str, Metric] = {
    "noise": sqnr.noise,
    "kl": kl.divergence,
    "fisher": fisher.sensitivity,
    "error": quantization_error,
}
"""Name -> loss of every width at every candidate."""

OF_FLOAT_MODELS = ("fisher", "error")
"""Metrics that look at the layers of a float model."""


def losses_by(metric: str, problem: Problem, data: Any, samples: int) -> Losses:
    """Losses by a metric, by its name.

    Raises:
        ConfigError: an unknown one, or one of float models for a network.
        CalibrationError: as of the metric.
    """
    measure = row_named("metric", metric, METRICS)
    if metric in OF_FLOAT_MODELS and not problem.sites.is_float:
        others = [name for name in METRICS if name not in OF_FLOAT_MODELS]
        raise ConfigError(
            f"metric: expected one of {others} for a network, got {metric!r}, which looks at the "
            "layers of a float model"
        )
    return measure(problem, data, samples)
