"""Bit-widths of the whole network first, then of every layer on its own (Bit-Mixer)."""

import random

import torch

from brevitas_multiquant.core.panel import Setting
from brevitas_multiquant.core.precision import Assignment
from brevitas_multiquant.errors import ConfigError
from brevitas_multiquant.nn.network import MultiQuantNet
from brevitas_multiquant.training.criteria import Criterion
from brevitas_multiquant.training.task import LARGEST, NOBODY, Objective, TrainingTask


class RandomAssignments(TrainingTask):
    """Every site at random bits of its own, more and more of them (Bit-Mixer, 2103.17267).

    Three stages. The first two train a network whose sites all run at one bit-width, as
    `brevitas_multiquant.InPlaceDistillation` does: each bit-width in turn, taught by the largest.
    In the third a site takes random bits instead, each candidate alike, with a probability that
    grows from epoch to epoch to 1, (epoch + 1) / epochs of the stage; that is how Double Rounding
    (2502.01199, mixed precision) describes it. The largest bit-width runs whole always: it teaches.

    Established from descriptions by others, as the paper publishes no code: what tells the first
    two stages apart is not known, they are one here, nor how long each is.

    What is drawn is a function of the run's seed, the epoch, the step and the bit-width: a resumed
    run draws the same, and all processes draw alike.

    A network of branches learns so too: then activations alone have random bits.

    Norms that sites choose get no gradient in a step that did not draw them. So
    ``DistributedDataParallel`` around the task needs ``find_unused_parameters=True``.

    Args:
        net: the network to train.
        uniform: the share of the epochs that the first two stages take.
        distill: False trains by CE alone.
        criterion: (output, target) -> scalar; default cross entropy.
        distill_criterion: (student's output, teacher's output) -> scalar.

    Raises:
        NetworkError, ConfigError: as of `TrainingTask`; ``uniform`` outside of 0 to 1; a training
            step that was not told where it is (`at`).

    Example:
        >>> import torch
        >>> from torchvision.models import resnet18
        >>> from brevitas_multiquant import multiquantize
        >>> model = resnet18(num_classes=10)
        >>> net = multiquantize(model, [2, 4], method="bit_mixer", input_shape=(1, 3, 32, 32))
        >>> task = RandomAssignments(net, uniform=0.5)
        >>> task.at(epoch=0, epochs=4, step=0)  # the second stage
        >>> task.setting_of(2)
        2
        >>> task.at(epoch=3, epochs=4, step=0)  # the last epoch of the third
        >>> task.setting_of(2).is_uniform, task.setting_of(4)
        (False, 4)
    """

    def __init__(
        self,
        net: MultiQuantNet,
        *,
        uniform: float = 0.5,
        distill: bool = True,
        criterion: Criterion | None = None,
        distill_criterion: Criterion | None = None,
    ) -> None:
        super().__init__(
            net,
            Objective(LARGEST if distill else NOBODY),
            criterion=criterion,
            distill_criterion=distill_criterion,
        )
        if not 0 <= uniform <= 1:
            raise ConfigError(f"uniform: expected a share of the epochs, 0 to 1, got {uniform!r}")
        self.uniform = uniform
        self._place: tuple[int, int, int, int] | None = None

    def at(self, epoch: int, epochs: int, step: int, seed: int = 0) -> None:
        """Be told where in its training the network is, before every step."""
        self._place = seed, epoch, epochs, step

    @property
    def probability(self) -> float:
        """With which a site takes random bits in this step: 0 in the first two stages.

        Raises:
            ConfigError: it was not told where it is.
        """
        if self._place is None:
            raise ConfigError(
                "RandomAssignments: expected to know the epoch, on which it depends how many sites "
                "take random bits, got a step before any at(epoch, epochs, step): call it before "
                "every step"
            )
        _, epoch, epochs, _ = self._place
        first = round(self.uniform * epochs)
        return 0.0 if epoch < first else min(1.0, (epoch - first + 1) / (epochs - first))

    def setting_of(self, bits: int) -> Setting:
        """Random bits for each site in a bit-width's turn; the largest one runs whole."""
        if bits == max(self.net.bits) or not torch.is_grad_enabled():
            return bits
        probability = self.probability
        if not probability:
            return bits
        draw = random.Random(f"{self._place} {bits}")
        sites = {}
        for site in self.net.sites:
            own = draw.choice(self.net.bits) if draw.random() < probability else bits
            sites[site] = self.net.precision_at(site, own)
        return Assignment(bits, sites)
