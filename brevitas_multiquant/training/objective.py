"""What the methods of run-time bit-widths train for: a task each, which is an `Objective`."""

from brevitas_multiquant.core.config import check_choice
from brevitas_multiquant.nn.network import MultiQuantNet
from brevitas_multiquant.training.criteria import (
    LABELS,
    ONE_LABEL,
    READS,
    VALUES,
    Criterion,
    distill_criterion_for,
    kind_of,
    soft_binary_cross_entropy,
    soft_cross_entropy,
)
from brevitas_multiquant.training.entries import EntryLosses, Losses
from brevitas_multiquant.training.task import (
    EACH,
    LARGEST,
    NEXT_LARGER,
    NOBODY,
    BitWidthLoss,
    Objective,
    TrainingTask,
)

__all__ = [
    "LABELS",
    "ONE_LABEL",
    "READS",
    "VALUES",
    "BitWidthLoss",
    "Criterion",
    "EntryLosses",
    "InPlaceDistillation",
    "LabelsAlone",
    "RecursiveDistillation",
    "StepwiseDistillation",
    "distill_criterion_for",
    "kind_of",
    "soft_binary_cross_entropy",
    "soft_cross_entropy",
]

SHARES = {"sum": 1.0, "halved": 0.5}


class InPlaceDistillation(TrainingTask):
    """The training task: all bit-widths of one batch, largest first.

    The largest bit-width minimises CE; every other CE + KD, where the teacher is the largest
    bit-width's output on the same batch, detached (eq. 7). CE stands for ``criterion`` and KD for
    ``distill_criterion``, which are cross entropies where one label is right.

    Args:
        net: the network to train.
        loss: ``"sum"``: CE + KD as in eq. 7; ``"halved"``: (CE + KD) / 2 as in the published code.
        distill: False trains every bit-width by CE alone.
        criterion: (output, target) -> scalar, or a mapping of entries; default cross entropy.
        distill_criterion: (student's output, teacher's output) -> scalar. By default as
            ``criterion`` asks (`READS`): `soft_cross_entropy` where one label is right,
            `soft_binary_cross_entropy` where several may be (BCE with logits) or there is a single
            output, and for regression (MSE, L1 and so on) ``criterion`` itself against the
            teacher's output.

    Raises:
        NetworkError: a wrapped network, or none.
        ConfigError: an unknown ``loss``; a ``criterion`` that no distillation loss is known for;
            a ``distill_criterion`` that cannot read the teacher's logits; when it runs, a cross
            entropy of a single output, which is 0 whatever the network does.

    Example:
        >>> import torch
        >>> from torchvision.models import resnet18
        >>> from brevitas_multiquant import multiquantize
        >>> net = multiquantize(resnet18(num_classes=10), [2, 4], input_shape=(1, 3, 32, 32))
        >>> out = InPlaceDistillation(net)(torch.rand(4, 3, 32, 32), torch.arange(4))
        >>> sorted(out), sorted(out["outputs"]), sorted(out["kd"])
        (['ce', 'kd', 'loss', 'outputs'], [2, 4], [2])
    """

    def __init__(
        self,
        net: MultiQuantNet,
        *,
        loss: str = "sum",
        distill: bool = True,
        criterion: Losses | None = None,
        distill_criterion: Losses | None = None,
    ) -> None:
        check_choice("loss", loss, tuple(SHARES))
        super().__init__(
            net,
            Objective(LARGEST if distill else NOBODY, share=SHARES[loss]),
            criterion=criterion,
            distill_criterion=distill_criterion,
        )


class LabelsAlone(TrainingTask):
    """Every bit-width learns from labels (AdaBits, 1912.09666): nobody teaches.

    Args:
        net: the network to train.
        criterion: (output, target) -> scalar, or a mapping of entries; default cross entropy.

    Raises:
        NetworkError, ConfigError: as of `TrainingTask`.
    """

    def __init__(self, net: MultiQuantNet, *, criterion: Losses | None = None) -> None:
        super().__init__(net, Objective(), criterion=criterion)


TAUGHT_BY = {
    "recursive": Objective(NEXT_LARGER, labels=False),
    "top": Objective(LARGEST, labels=False),
    "labels": Objective(NOBODY),
}
"""The three ways that Any-Precision is published with: its "recursive", "soft" and "hard"."""


class RecursiveDistillation(TrainingTask):
    """The next larger bit-width teaches, without labels (Any-Precision, 1911.07346).

    The largest bit-width minimises CE, every other one KD alone.

    Args:
        net: the network to train.
        teacher: ``"recursive"``: the next larger bit-width that runs; ``"top"``: the largest;
            ``"labels"``: none, each learns from labels.
        criterion: (output, target) -> scalar, or a mapping of entries; default cross entropy.
        distill_criterion: (student's output, teacher's output) -> scalar.

    Raises:
        NetworkError, ConfigError: as of `TrainingTask`; an unknown ``teacher``.
    """

    def __init__(
        self,
        net: MultiQuantNet,
        *,
        teacher: str = "recursive",
        criterion: Losses | None = None,
        distill_criterion: Losses | None = None,
    ) -> None:
        check_choice("teacher", teacher, tuple(TAUGHT_BY))
        super().__init__(
            net, TAUGHT_BY[teacher], criterion=criterion, distill_criterion=distill_criterion
        )


class StepwiseDistillation(TrainingTask):
    """The optimizers step after each bit-width (Double Rounding, 2502.01199).

    The largest bit-width minimises CE, every other one CE + KD of the largest. The learning rate of
    the ranges is scaled for each bit-width and by its gradients
    (`brevitas_multiquant.training.range_rates.adaptive_rate`).

    Args:
        net: the network to train.
        distill: False trains every bit-width by CE alone.
        criterion: (output, target) -> scalar, or a mapping of entries; default cross entropy.
        distill_criterion: (student's output, teacher's output) -> scalar.

    Raises:
        NetworkError, ConfigError: as of `TrainingTask`.

    Example:
        >>> import torch
        >>> from torchvision.models import resnet18
        >>> from brevitas_multiquant import multiquantize
        >>> from brevitas_multiquant.training.range_rates import scaled_rate
        >>> net = multiquantize(resnet18(num_classes=10), [2, 4], input_shape=(1, 3, 32, 32))
        >>> task = StepwiseDistillation(net)
        >>> model = torch.optim.SGD(net.model_parameters(), lr=0.1)
        >>> ranges = torch.optim.Adam(net.range_parameters(), lr=1e-4)
        >>> def update(bits):
        ...     model.step()
        ...     with scaled_rate(ranges, task.range_rate(bits)):
        ...         ranges.step()
        ...     net.zero_grad()
        >>> out = task.step(torch.rand(4, 3, 32, 32), torch.arange(4), update=update)
        >>> list(out["ce"])
        [4, 2]
    """

    def __init__(
        self,
        net: MultiQuantNet,
        *,
        distill: bool = True,
        criterion: Losses | None = None,
        distill_criterion: Losses | None = None,
    ) -> None:
        super().__init__(
            net,
            Objective(LARGEST if distill else NOBODY, update=EACH, range_rate="adaptive"),
            criterion=criterion,
            distill_criterion=distill_criterion,
        )
