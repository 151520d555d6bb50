"""How far the predicted classes go when one bit-width is quantized: no labels, no training.

On-chip hardware-aware quantization (OHQ, arXiv:2309.01945): the sensitivity of a layer is the
Kullback-Leibler divergence of the network's output with the layer quantized from the one without,
costs are those measured on the chip (`CostTable`), and an integer program chooses. Established from
descriptions by others: which of the two distributions the paper takes the expectation over is not
known; here it is that of the unchanged network, KL(p || p_q) = sum of p log(p / p_q). OHQ makes up
its images on the chip; here they are given.
"""

import torch.nn.functional as F
from torch import Tensor

from brevitas_multiquant.allocation.problem import Problem
from brevitas_multiquant.allocation.sites import Width
from brevitas_multiquant.allocation.strategies.output_change import output_changes


def divergence(problem: Problem, data: object, samples: int) -> dict[Width, dict[int, float]]:
    """KL(softmax(y) || softmax(y_q)) of an image, of each width at each of its candidates.

    Args:
        problem: what can be chosen.
        data: batches of images.
        samples: how many images.

    Raises:
        CalibrationError: no data.
    """
    return output_changes(problem, data, samples, "kl", _divergence, len)


def _divergence(logits: Tensor, changed: Tensor) -> Tensor:
    before, after = (F.log_softmax(one, dim=1) for one in (logits, changed))
    return F.kl_div(after, before, reduction="sum", log_target=True)
