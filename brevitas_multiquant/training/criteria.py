"""Criteria: what they take an output for, and the distillation loss that goes with each."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from brevitas_multiquant.errors import ConfigError

Criterion = Callable[[Tensor, Tensor], Tensor]

ONE_LABEL, LABELS, VALUES = "one label", "labels", "values"
"""What a criterion takes an output for: logits of classes of which one is right; logits of labels
each of which is right or not; values that are to be met as they are."""

READS: dict[str, tuple[str, ...]] = {
    ONE_LABEL: (
        *("torch.CrossEntropyLoss", "torch.cross_entropy", "torch.NLLLoss", "torch.nll_loss"),
        *("timm.LabelSmoothingCrossEntropy", "timm.SoftTargetCrossEntropy"),
        *("timm.PolyCrossEntropy", "timm.JsdCrossEntropy", "timm.AsymmetricLossSingleLabel"),
        "brevitas_multiquant.soft_cross_entropy",
    ),
    LABELS: (
        *("torch.BCEWithLogitsLoss", "torch.binary_cross_entropy_with_logits"),
        *("torch.MultiLabelSoftMarginLoss", "torch.multilabel_soft_margin_loss"),
        *("torch.SoftMarginLoss", "torch.soft_margin_loss", "torchvision.sigmoid_focal_loss"),
        *("timm.BinaryCrossEntropy", "timm.PolyBinaryCrossEntropy"),
        *("timm.AsymmetricLossMultiLabel", "timm.DistributionBalancedLoss"),
        "brevitas_multiquant.soft_binary_cross_entropy",
    ),
    VALUES: (
        *("torch.MSELoss", "torch.mse_loss", "torch.L1Loss", "torch.l1_loss"),
        *("torch.SmoothL1Loss", "torch.smooth_l1_loss", "torch.HuberLoss", "torch.huber_loss"),
        *("torch.BCELoss", "torch.binary_cross_entropy"),  # of probabilities, not of logits
    ),
}
"""Criteria by package and name, their subclasses included; no package is loaded for it."""

_KINDS = {name: kind for kind, names in READS.items() for name in names}


def soft_cross_entropy(student: Tensor, teacher: Tensor) -> Tensor:
    """KD of eq. 7: cross entropy against the teacher's softmax, mean over batch and pixels.

    Args:
        student: logits (N, classes), or of pixels (N, classes, H, W).
        teacher: logits of the same shape.

    Example:
        >>> import torch
        >>> same = torch.zeros(1, 2)
        >>> soft_cross_entropy(same, same)
        tensor(0.6931)
    """
    return F.cross_entropy(student, teacher.softmax(dim=1))


def soft_binary_cross_entropy(student: Tensor, teacher: Tensor) -> Tensor:
    """KD where several labels may be right: each is learned from the teacher's sigmoid of it.

    The mean over labels and batch.

    Args:
        student: logits (N, labels).
        teacher: logits (N, labels).

    Example:
        >>> import torch
        >>> soft_binary_cross_entropy(torch.zeros(1, 1), torch.tensor([[3.0]]))
        tensor(0.6931)
    """
    return F.binary_cross_entropy_with_logits(student, teacher.sigmoid())


def kind_of(criterion: object) -> str | None:
    """What a criterion takes outputs for, by its type or name (`READS`); None where unknown.

    Example:
        >>> from torch import nn
        >>> kind_of(nn.CrossEntropyLoss()), kind_of(partial(F.huber_loss, delta=2))
        ('one label', 'values')
        >>> kind_of(lambda output, target: output.sum())
    """
    names = (f"{str(one.__module__).partition('.')[0]}.{one.__name__}" for one in _types(criterion))
    return next((_KINDS[name] for name in names if name in _KINDS), None)


def _types(criterion: object) -> tuple[Any, ...]:
    """The function that a criterion is, or its class and those that it inherits from."""
    while isinstance(criterion, partial):
        criterion = criterion.func
    criterion = getattr(criterion, "_orig_mod", criterion)  # of torch.compile
    return (criterion,) if hasattr(criterion, "__name__") else type(criterion).__mro__


def distill_criterion_for(criterion: Criterion) -> Criterion:
    """The distillation loss (student's output, teacher's output) that goes with a criterion.

    A criterion of values is its own: the teacher's output is the value to meet.

    Raises:
        ConfigError: nothing is known of the criterion.
    """
    kind = kind_of(criterion)
    if kind is None:
        raise ConfigError(
            f"criterion: expected one that a distillation loss is known for, got "
            f"{_name(criterion)}: pass distill_criterion=..., a function of a student's and the "
            "teacher's output, such as `soft_cross_entropy`; or distill=False"
        )
    return {
        ONE_LABEL: soft_cross_entropy,
        LABELS: soft_binary_cross_entropy,
        VALUES: criterion,
    }[kind]


def loss_of(criterion: Criterion, output: Any, target: Any, where: str = "criterion") -> Tensor:
    """What a criterion gives.

    Args:
        criterion: (output, target) -> scalar.
        output: what the network returned, or one entry of it.
        target: of the data, or the teacher's output.
        where: what the criterion is called in errors.

    Raises:
        ConfigError: a target that a known criterion does not take, or one of another shape than the
            values, which would be repeated along them; a loss that is no scalar.

    Example:
        >>> import torch
        >>> loss_of(F.mse_loss, torch.zeros(2, 3), torch.ones(2, 3))
        tensor(1.)
    """
    if _would_repeat(criterion, output, target):
        raise ConfigError(_another_target(criterion, output, target, where))
    try:
        loss = criterion(output, target)
    except torch.OutOfMemoryError:
        raise
    except (AttributeError, IndexError, RuntimeError, TypeError, ValueError) as error:
        if kind_of(criterion) is None or not isinstance(output, Tensor):
            raise
        said, *_ = str(error).splitlines() or [type(error).__name__]
        raise ConfigError(f"{_another_target(criterion, output, target, where)}: {said}") from error
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        raise ConfigError(f"{where}: expected a loss of one number, got {_told(loss)}")
    return loss


def _would_repeat(criterion: Criterion, output: Any, target: Any) -> bool:
    """Whether torch would broadcast a target of values of another shape: it only warns."""
    own, *_ = _types(criterion)
    tensors = isinstance(output, Tensor) and isinstance(target, Tensor)
    known = str(own.__module__).startswith("torch.") and kind_of(criterion) == VALUES
    return known and tensors and output.shape != target.shape


def _another_target(criterion: Criterion, output: Tensor, target: Any, where: str) -> str:
    """What a criterion expects of a target, and what it got."""
    shape = tuple(output.shape)
    expected = f"numbers {shape}"
    if kind_of(criterion) == ONE_LABEL:
        classes, indices = output.shape[1], (shape[0], *shape[2:])
        expected = (
            f"classes {indices} from 0 to {classes - 1}, as torch.int64 (pixels without one: "
            f"ignore_index of the criterion), or shares {shape}"
        )
    return f"{where}: expected a target of {expected} for outputs {shape}, got {_told(target)}"


def _told(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"{value.dtype} {tuple(value.shape)}"
    return type(value).__name__


def _name(criterion: object) -> str:
    return getattr(criterion, "__name__", type(criterion).__name__)


def check_reads_a_teacher(distill_criterion: Criterion) -> None:
    """Refuse criteria whose target is a label or a probability: a teacher's output is logits."""
    kind = kind_of(distill_criterion)
    if kind is not None and kind != VALUES:
        soft = {ONE_LABEL: soft_cross_entropy, LABELS: soft_binary_cross_entropy}[kind]
        if distill_criterion is not soft:
            raise ConfigError(
                f"distill_criterion: expected a function of two outputs, got "
                f"{_name(distill_criterion)}, whose second argument is labels or probabilities: "
                f"pass brevitas_multiquant.training.objective.{soft.__name__}"
            )
