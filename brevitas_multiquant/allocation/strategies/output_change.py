"""How the output changes when one bit-width is quantized, all else as it was: no labels needed."""

from collections.abc import Callable, Sequence
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


def output_changes(
    problem: Problem,
    data: object,
    samples: int,
    strategy: str,
    change: Callable[[Tensor, Tensor], Tensor],
    size: Callable[[Tensor], float],
) -> dict[Width, dict[int, float]]:
    """How far the output goes with each width at each of its candidates, all else unchanged.

    Args:
        problem: what can be chosen.
        data: batches of images.
        samples: how many images.
        strategy: whose they are, for errors.
        change: (logits (N, classes), those with one bit-width changed), both in fp64 where the
            device has it -> how far apart they are, summed over the images.
        size: logits -> what the sum is divided by, summed over the batches.

    Raises:
        CalibrationError: no data.
    """
    sites = problem.sites
    run: Run = Simulation(sites) if sites.is_float else AtRunTime(sites)
    found = {width: dict.fromkeys(of, 0.0) for width, of in problem.candidates.items()}
    total, device = 0.0, device_of(sites.net)
    with torch.no_grad():
        for images in images_of(data, strategy, samples):
            (images,) = on(device, images)
            logits = in_fp64(run.reference(images))
            total += size(logits)
            for width, of in found.items():
                if len(of) > 1:  # what is pinned loses the same whatever else is chosen
                    for bits in of:
                        other = run.changed(problem.members(width), bits, images)
                        of[bits] += float(change(logits, other.to(logits)))
    return {w: {bits: one / total for bits, one in of.items()} for w, of in found.items()}
