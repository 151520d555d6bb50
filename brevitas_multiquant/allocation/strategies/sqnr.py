"""Noise at the output from one bit-width at a time: no labels, no training.

Practical mixed precision for post-training quantization (Pandey et al., arXiv:2302.05397, 3.1):
SQNR = 10 log10(E|y|^2 / E|y - y_q|^2). Here the noise of weights and of activations is measured
apart and added, which takes 2n instead of n^2 measurements a site.
"""

from torch import Tensor

from brevitas_multiquant.allocation.problem import Problem
from brevitas_multiquant.allocation.sites import Width
from brevitas_multiquant.allocation.strategies.output_change import output_changes


def noise(problem: Problem, data: object, samples: int) -> dict[Width, dict[int, float]]:
    """E|y - y_q|^2 / E|y|^2 of the logits, of each width at each of its candidates.

    Args:
        problem: what can be chosen.
        data: batches of images.
        samples: how many images.

    Raises:
        CalibrationError: no data.
    """
    return output_changes(problem, data, samples, "sqnr", _squared_distance, _power)


def _squared_distance(logits: Tensor, changed: Tensor) -> Tensor:
    return (changed - logits).square().sum()


def _power(logits: Tensor) -> float:
    return float(logits.square().sum())
