"""Noise at the output from one bit-width at a time: no labels, no training.

Practical mixed precision for post-training quantization (Pandey et al., arXiv:2302.05397, 3.1):
SQNR = 10 log10(E|y|^2 / E|y - y_q|^2). Here the noise of weights and of activations is measured
apart and added, which takes 2n instead of n^2 measurements a site.
"""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from brevitas_multiquant.allocation.problem import Problem
from brevitas_multiquant.allocation.sites import ACTIVATION, WEIGHT, Sites, Width
from brevitas_multiquant.allocation.strategies.samples import images_of, on
from brevitas_multiquant.allocation.strategies.simulate import Simulation
from brevitas_multiquant.core.devices import in_fp64
from brevitas_multiquant.core.precision import Assignment
from brevitas_multiquant.nn.network import device_of


class Run(Protocol):
    """What can run with some bit-widths changed."""

    def reference(self, images: Tensor) -> Tensor:
        """Logits that others are compared with."""

    def changed(self, widths: Sequence[Width], bits: int, images: Tensor) -> Tensor:
        """Logits with some bit-widths changed, together."""


class AtRunTime:
    """A network of run-time bit-widths: its own quantizers, all else at the most bits.

    Args:
        sites: of the network.
    """

    def __init__(self, sites: Sites) -> None:
        self.net = sites.net.view(sites.bits).eval()
        self.most = max(sites.net.bits)
        weight = sites.weight_bits or self.most
        self.base = Assignment(sites.bits, dict.fromkeys(sites.names, (weight, self.most)))

    def reference(self, images: Tensor) -> Tensor:
        """All sites at the most bits."""
        return self._at(self.base, images)

    def changed(self, widths: Sequence[Width], bits: int, images: Tensor) -> Tensor:
        """Some sites at other bits."""
        sites = {site: dict(precision._asdict()) for site, precision in self.base.items()}
        for site, kind in widths:
            sites[site][kind] = bits
        pairs = {site: (of[WEIGHT], of[ACTIVATION]) for site, of in sites.items()}
        return self._at(Assignment(self.base.bits, pairs), images)

    def _at(self, assignment: Assignment, images: Tensor) -> Tensor:
        with self.net.at_bits(assignment):
            return self.net(images)  # type: ignore[no-any-return]


def noise(problem: Problem, data: object, samples: int) -> dict[Width, dict[int, float]]:
    """E|y - y_q|^2 / E|y|^2 of the logits, of each width at each of its candidates.

    Args:
        problem: what can be chosen.
        data: batches of images.
        samples: how many images.

    Raises:
        CalibrationError: no data.
    """
    sites = problem.sites
    run: Run = Simulation(sites) if sites.is_float else AtRunTime(sites)
    found = {width: dict.fromkeys(of, 0.0) for width, of in problem.candidates.items()}
    power, device = 0.0, device_of(sites.net)
    with torch.no_grad():
        for images in images_of(data, "sqnr", samples):
            (images,) = on(device, images)
            logits = in_fp64(run.reference(images))
            power += float(logits.square().sum())
            for width, of in found.items():
                if len(of) > 1:  # what is pinned loses the same whatever else is chosen
                    for bits in of:
                        changed = run.changed(problem.members(width), bits, images)
                        of[bits] += float((changed.to(logits) - logits).square().sum())
    return {w: {bits: one / power for bits, one in of.items()} for w, of in found.items()}
