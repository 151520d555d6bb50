"""In-place distillation: the largest bit-width teaches the others (paper, section 3.5, eq. 7)."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from brevitas_multiquant.core.config import check_choice
from brevitas_multiquant.core.selection import chosen_bits
from brevitas_multiquant.errors import ConfigError
from brevitas_multiquant.nn.given import bare_network
from brevitas_multiquant.nn.network import MultiQuantNet

LOSSES = ("sum", "halved")

_WRAP_THE_TASK = (
    "wrap the task instead, as DistributedDataParallel(InPlaceDistillation(net)), and compile with "
    "net.compile()"
)
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


class BitWidthLoss(NamedTuple):
    """One bit-width's share of a training step."""

    bits: int
    loss: Tensor
    output: Tensor
    ce: Tensor
    kd: Tensor | None


def soft_cross_entropy(student: Tensor, teacher: Tensor) -> Tensor:
    """KD of eq. 7: cross entropy against the teacher's softmax, mean over the batch.

    Args:
        student: logits (N, classes).
        teacher: logits (N, classes).

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
        >>> kind_of(nn.CrossEntropyLoss()), kind_of(partial(F.huber_loss, delta=2))
        ('one label', 'values')
        >>> kind_of(lambda output, target: output.sum())
    """
    while isinstance(criterion, partial):
        criterion = criterion.func
    criterion = getattr(criterion, "_orig_mod", criterion)  # of torch.compile
    named = [criterion] if hasattr(criterion, "__name__") else type(criterion).__mro__
    names = (f"{str(one.__module__).partition('.')[0]}.{one.__name__}" for one in named)
    return next((_KINDS[name] for name in names if name in _KINDS), None)


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


class InPlaceDistillation(nn.Module):
    """The training task: all bit-widths of one batch, largest first.

    The largest bit-width minimises CE; every other CE + KD, where the teacher is the largest
    bit-width's output on the same batch, detached (eq. 7). CE stands for ``criterion`` and KD for
    ``distill_criterion``, which are cross entropies where one label is right.

    Args:
        net: the network to train.
        loss: ``"sum"``: CE + KD as in eq. 7; ``"halved"``: (CE + KD) / 2 as in the published code.
        distill: False trains every bit-width by CE alone.
        criterion: (output, target) -> scalar; default cross entropy.
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
        criterion: Criterion | None = None,
        distill_criterion: Criterion | None = None,
    ) -> None:
        super().__init__()
        check_choice("loss", loss, LOSSES)
        self.net = bare_network(net, "InPlaceDistillation", _WRAP_THE_TASK)
        self.share = 1.0 if loss == "sum" else 0.5
        self.distill = distill
        self.criterion = nn.CrossEntropyLoss() if criterion is None else criterion
        if distill_criterion is not None:
            _check_reads_a_teacher(distill_criterion)
        elif distill and len(net.bits) > 1:
            distill_criterion = distill_criterion_for(self.criterion)
        self.distill_criterion = distill_criterion
        terms = [self.criterion, *([distill_criterion] if distill else [])]
        self._of_classes = any(kind_of(term) == ONE_LABEL for term in terms)

    def forward(
        self, images: Tensor, target: Tensor, bits: Sequence[int] | None = None
    ) -> dict[str, Any]:
        """One forward over all bit-widths.

        Args:
            images: (N, C, H, W).
            target: what ``criterion`` takes; by default class indices (N,) or probabilities
                (N, classes).
            bits: the bit-widths that run in this step, default all. The largest of them teaches,
                and its branches stand in for smaller bit-widths that do not run
                (`MultiQuantNet.forward_with_stand_ins`): 2 and 8 of 2, 4, 6, 8 train all four
                for 5 branch passes instead of 10, except for what 4 and 6 have of their own, their
                norms and ranges. So let each run now and then.

        Returns:
            ``loss``: the scalar to differentiate, summed over bit-widths; ``outputs``, ``ce`` and
            ``kd``: bit-width that ran -> logits (N, classes), cross entropy, distillation loss.

        Raises:
            ConfigError: a cross entropy of a single output.
        """
        parts = list(self.losses(images, target, bits))
        return _collect(parts, sum(part.loss for part in parts))

    def step(
        self,
        images: Tensor,
        target: Tensor,
        backward: Callable[[Tensor], Any] = Tensor.backward,
        bits: Sequence[int] | None = None,
    ) -> dict[str, Any]:
        """`forward` and its backward, one bit-width after the other.

        Gradients are those of the joint loss; only one bit-width's activations are alive at a
        time, so memory peaks at that of the largest. For a single process: under DDP call the
        wrapped task and differentiate ``loss``.

        Args:
            images: (N, C, H, W).
            target: as in `forward`.
            backward: called with each bit-width's loss, e.g. ``accelerator.backward``.
            bits: as in `forward`.

        Returns:
            What `forward` returns, detached.
        """
        parts = []
        for part in self.losses(images, target, bits):
            backward(part.loss)
            parts.append(_detached(part))
            del part
        return _collect(parts, sum(part.loss for part in parts))

    def losses(
        self, images: Tensor, target: Tensor, chosen: Sequence[int] | None = None
    ) -> Iterator[BitWidthLoss]:
        """The loss of each bit-width that runs, largest first; stand-ins are in the first."""
        if torch.is_grad_enabled():
            self.net.require_trainable("InPlaceDistillation")
        bits_now = self.net.bits if chosen is None else chosen_bits(chosen, self.net.bits, "bits")
        largest, *students = reversed(bits_now)
        with self.net.at_bits(largest):
            output, stand_ins = self._teach(images, largest, students)
        self._check_classes(output)
        teacher = output.detach()
        ce = self.criterion(output, target)
        stood_in = [self._student_loss(logits, target, teacher)[0] for logits in stand_ins]
        yield BitWidthLoss(largest, sum(stood_in, ce), output, ce, None)
        del output, ce, stand_ins, stood_in  # and what the backward needed of them
        for bits in students:
            with self.net.at_bits(bits):
                output = self.net(images)
            loss, ce, kd = self._student_loss(output, target, teacher)
            yield BitWidthLoss(bits, loss, output, ce, kd)

    def _teach(
        self, images: Tensor, largest: int, students: Sequence[int]
    ) -> tuple[Tensor, list[Tensor]]:
        """Logits of the largest bit-width, and stand-ins for those that do not run."""
        smaller = [bits for bits in self.net.bits if bits < largest and self._covers(largest, bits)]
        if set(smaller) <= set(students):
            return self.net(images), []
        # The same others whoever of them runs, so that one compiled graph serves every choice.
        others = smaller[1:] if smaller[0] in students else smaller
        output, *logits = self.net.forward_with_stand_ins(images, others)
        return output, [
            one for one, bits in zip(logits, others, strict=True) if bits not in students
        ]

    def _check_classes(self, output: Tensor) -> None:
        if self._of_classes and (output.dim() < 2 or output.shape[1] == 1):
            raise ConfigError(
                f"criterion: expected logits (N, classes) of two classes or more, got "
                f"{tuple(output.shape)}: the softmax of one output is 1 and its cross entropy 0, "
                "so that nothing would be learned: use criterion=nn.BCEWithLogitsLoss() with a "
                "float target (N, 1), or nn.MSELoss() for a value"
            )

    def _covers(self, larger: int, bits: int) -> bool:
        """Whether all branches of a bit-width run at a larger one."""
        selection = self.net.config.selection
        return set(selection[bits]) <= set(selection[larger])

    def _student_loss(
        self, output: Tensor, target: Tensor, teacher: Tensor
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """A student's share of the step's loss; its cross entropy; its distillation loss."""
        ce = self.criterion(output, target)
        if not self.distill or self.distill_criterion is None:
            return ce, ce, None
        kd = self.distill_criterion(output, teacher)
        return self.share * (ce + kd), ce, kd


def _name(criterion: object) -> str:
    return getattr(criterion, "__name__", type(criterion).__name__)


def _check_reads_a_teacher(distill_criterion: Criterion) -> None:
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


def _detached(part: BitWidthLoss) -> BitWidthLoss:
    kd = None if part.kd is None else part.kd.detach()
    return BitWidthLoss(part.bits, part.loss.detach(), part.output.detach(), part.ce.detach(), kd)


def _collect(parts: list[BitWidthLoss], loss: Any) -> dict[str, Any]:
    return {
        "loss": loss,
        "outputs": {part.bits: part.output for part in parts},
        "ce": {part.bits: part.ce.detach() for part in parts},
        "kd": {part.bits: part.kd.detach() for part in parts if part.kd is not None},
    }
