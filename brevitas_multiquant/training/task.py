"""The training task: the bit-widths of one batch, largest first, as an objective says."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from brevitas_multiquant.core.config import check_choice
from brevitas_multiquant.core.panel import Setting
from brevitas_multiquant.core.selection import chosen_bits
from brevitas_multiquant.errors import ConfigError
from brevitas_multiquant.nn.given import bare_network
from brevitas_multiquant.nn.network import MultiQuantNet
from brevitas_multiquant.training.criteria import Criterion, loss_of
from brevitas_multiquant.training.entries import (
    Losses,
    as_criterion,
    check_classes,
    check_distillation,
    distillation_of,
)
from brevitas_multiquant.training.range_rates import RANGE_RATES

Teacher = Callable[[Sequence[Any]], Any]
"""Detached outputs of the larger bit-widths that ran, largest first -> the one to learn from."""

NOBODY, LARGEST, NEXT_LARGER = "nobody", "largest", "next larger"
TEACHERS: dict[str, Teacher] = {
    NOBODY: lambda larger: None,
    LARGEST: lambda larger: larger[0],
    NEXT_LARGER: lambda larger: larger[-1],
}
"""Who teaches a bit-width."""

TOGETHER, EACH = "together", "each"
UPDATES = (TOGETHER, EACH)
"""When the optimizers step: after all bit-widths of a batch, or after each."""


@dataclass(frozen=True)
class Objective:
    """What bit-widths learn from, and when. The largest that runs always learns from labels.

    Args:
        teacher: of every other one, a name in `TEACHERS`.
        labels: whether those that have a teacher learn from labels too.
        share: of their loss.
        update: when the optimizers step, one of `UPDATES`.
        range_rate: the rule of the ranges' learning rate, a name in `RANGE_RATES`.

    Raises:
        ConfigError: an unknown name.
    """

    teacher: str = NOBODY
    labels: bool = True
    share: float = 1.0
    update: str = TOGETHER
    range_rate: str = "as scheduled"

    def __post_init__(self) -> None:
        check_choice("teacher", self.teacher, tuple(TEACHERS))
        check_choice("update", self.update, UPDATES)
        check_choice("range_rate", self.range_rate, tuple(RANGE_RATES))


class BitWidthLoss(NamedTuple):
    """One bit-width's share of a training step."""

    bits: int
    loss: Tensor
    output: Any
    ce: Tensor
    kd: Tensor | None


class TrainingTask(nn.Module):
    """All bit-widths of one batch, largest first; an `Objective` says what each learns from.

    `brevitas_multiquant.objective_of` makes the one of a network's method.

    Args:
        net: the network to train.
        objective: what its bit-widths learn from, and when.
        criterion: (output, target) -> scalar; default cross entropy, of images or of pixels. Of an
            output of several entries a mapping key -> criterion, a list or tuple of them, or
            `brevitas_multiquant.training.entries.EntryLosses` with weights.
        distill_criterion: (student's output, teacher's output) -> scalar, or by entries as well; by
            default as ``criterion`` asks (`brevitas_multiquant.training.objective.READS`).

    Raises:
        NetworkError: a wrapped network, or none.
        ConfigError: a ``criterion`` that no distillation loss is known for; a
            ``distill_criterion`` that cannot read the teacher's logits; when it runs, a cross
            entropy of a single output, which is 0 whatever the network does.

    Example:
        >>> import torch
        >>> from torchvision.models import resnet18
        >>> from brevitas_multiquant import multiquantize
        >>> net = multiquantize(resnet18(num_classes=10), [2, 4, 6], input_shape=(1, 3, 32, 32))
        >>> task = TrainingTask(net, Objective(NEXT_LARGER, labels=False))
        >>> out = task(torch.rand(4, 3, 32, 32), torch.arange(4))
        >>> sorted(out["ce"]), sorted(out["kd"])
        ([2, 4, 6], [2, 4])
    """

    def __init__(
        self,
        net: MultiQuantNet,
        objective: Objective,
        *,
        criterion: Losses | None = None,
        distill_criterion: Losses | None = None,
    ) -> None:
        super().__init__()
        name = type(self).__name__
        self.net = bare_network(
            net,
            name,
            f"wrap the task instead, as DistributedDataParallel({name}(net)), and compile with "
            "net.compile()",
        )
        self.objective = objective
        self.criterion = nn.CrossEntropyLoss() if criterion is None else as_criterion(criterion)
        self.distill_criterion: Criterion | None = None
        distills = objective.teacher != NOBODY
        if distill_criterion is not None:
            self.distill_criterion = as_criterion(distill_criterion, "distill_criterion")
            check_distillation(self.distill_criterion)
        elif distills and len(net.bits) > 1:
            self.distill_criterion = distillation_of(self.criterion)
        self._terms = {"criterion": self.criterion}
        if distills and self.distill_criterion is not None:
            self._terms["distill_criterion"] = self.distill_criterion

    @property
    def updates_after_each(self) -> bool:
        """Whether the optimizers step after each bit-width, and not after all of a batch."""
        return self.objective.update == EACH

    def range_rate(self, bits: int) -> float:
        """The factor of the ranges' learning rate in the update that follows a backward.

        Args:
            bits: that ran, of an objective that updates after each. The ranges' gradients are
                its own.
        """
        gradients = (range.grad for range in self.net.range_parameters() if range.grad is not None)
        return RANGE_RATES[self.objective.range_rate](max(self.net.bits) - bits, gradients)

    def forward(
        self, images: Tensor, target: Any, bits: Sequence[int] | None = None
    ) -> dict[str, Any]:
        """One forward over all bit-widths.

        Args:
            images: (N, C, H, W).
            target: what ``criterion`` takes; by default class indices (N,), or of pixels (N, H, W),
                or probabilities of the output's shape.
            bits: the bit-widths that run in this step, default all. The largest of them teaches,
                and its branches stand in for smaller bit-widths that do not run
                (`MultiQuantNet.forward_with_stand_ins`): 2 and 8 of 2, 4, 6, 8 train all four
                for 5 branch passes instead of 10, except for what 4 and 6 have of their own, their
                norms and ranges. So let each run now and then. A network of one body has no
                stand-ins: the others do not learn.

        Returns:
            ``loss``: the scalar to differentiate, summed over bit-widths; ``outputs``, ``ce`` and
            ``kd``: bit-width that ran -> what the network gave, as logits (N, classes), cross
            entropy, distillation loss.

        Raises:
            ConfigError: a cross entropy of a single output; an objective that updates after each
                bit-width, which has no loss of all of them to differentiate.
        """
        if self.updates_after_each and torch.is_grad_enabled():
            raise ConfigError(
                f"{type(self).__name__}: expected step(images, target, update=...), as the "
                "optimizers step after each bit-width and there is no loss of all of them, got a "
                "forward that records gradients; torch.no_grad() around it for the losses alone"
            )
        parts = list(self.losses(images, target, bits))
        return _collect(parts, sum(part.loss for part in parts))

    def step(
        self,
        images: Tensor,
        target: Any,
        backward: Callable[[Tensor], Any] = Tensor.backward,
        bits: Sequence[int] | None = None,
        update: Callable[[int], Any] | None = None,
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
            update: for an objective that updates after each bit-width: called with the bit-width
                after its backward, to step the optimizers and to clear gradients. Others do that
                after the step.

        Returns:
            What `forward` returns, detached.

        Raises:
            ConfigError: as of `forward`; ``update`` missing, or given to an objective that has
                no use for it.
        """
        self._check_update(update)
        parts = []
        for part in self.losses(images, target, bits):
            backward(part.loss)
            parts.append(_detached(part))
            del part
            if update is not None:
                update(parts[-1].bits)
        return _collect(parts, sum(part.loss for part in parts))

    def losses(
        self, images: Tensor, target: Any, chosen: Sequence[int] | None = None
    ) -> Iterator[BitWidthLoss]:
        """The loss of each bit-width that runs, largest first; stand-ins are in the first."""
        if torch.is_grad_enabled():
            self.net.require_trainable(type(self).__name__)
        bits_now = self.net.bits if chosen is None else chosen_bits(chosen, self.net.bits, "bits")
        largest, *students = reversed(bits_now)
        with self.net.at_bits(self.setting_of(largest)):
            output, stand_ins = self._teach(images, largest, students)
        for name, term in self._terms.items():
            check_classes(term, output, name)
        larger = [tree_map(_detach, output)]
        ce = loss_of(self.criterion, output, target)
        stood_in = [self._student_loss(logits, target, larger)[0] for logits in stand_ins]
        yield BitWidthLoss(largest, sum(stood_in, ce), output, ce, None)
        del output, ce, stand_ins, stood_in  # and what the backward needed of them
        for bits in students:
            with self.net.at_bits(self.setting_of(bits)):
                output = self.net(images)
            loss, ce, kd = self._student_loss(output, target, larger)
            larger.append(tree_map(_detach, output))
            yield BitWidthLoss(bits, loss, output, ce, kd)

    def at(self, epoch: int, epochs: int, step: int, seed: int = 0) -> None:
        """Be told where in its training the network is, before every step.

        What an objective may change with that is a function of these numbers, so that a resumed
        run goes on as it would have.

        Args:
            epoch: from 0.
            epochs: of the whole training.
            step: of the epoch, from 0.
            seed: of the run, the same in all processes.
        """

    def setting_of(self, bits: int) -> Setting:
        """What the network runs at when it is a bit-width's turn."""
        return bits

    def _check_update(self, update: object) -> None:
        if self.updates_after_each and update is None:
            raise ConfigError(
                f"{type(self).__name__}.step: expected update=..., a function of the bit-width "
                "that steps the optimizers and clears gradients after each of them, got none"
            )
        if update is not None and not self.updates_after_each:
            raise ConfigError(
                f"{type(self).__name__}.step: expected no update=..., as the optimizers step once "
                "after all bit-widths: step them after this call"
            )

    def _teach(
        self, images: Tensor, largest: int, students: Sequence[int]
    ) -> tuple[Any, list[Any]]:
        """Outputs of the largest bit-width, and stand-ins for those that do not run."""
        smaller = [bits for bits in self.net.bits if bits < largest and self._covers(largest, bits)]
        if set(smaller) <= set(students):
            return self.net(images), []
        # The same others whoever of them runs, so that one compiled graph serves every choice.
        others = smaller[1:] if smaller[0] in students else smaller
        output, *logits = self.net.forward_with_stand_ins(images, others)
        return output, [
            one for one, bits in zip(logits, others, strict=True) if bits not in students
        ]

    def _covers(self, larger: int, bits: int) -> bool:
        """Whether all branches of a bit-width are some of those that run at a larger one."""
        selection = self.net.config.selection
        return len(self.net.branches) > 1 and set(selection[bits]) <= set(selection[larger])

    def _student_loss(
        self, output: Any, target: Any, larger: Sequence[Any]
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """A student's share of the step's loss; its cross entropy; its distillation loss."""
        teacher = TEACHERS[self.objective.teacher](larger)
        if teacher is None or self.distill_criterion is None:
            ce = loss_of(self.criterion, output, target)
            return ce, ce, None
        kd = loss_of(self.distill_criterion, output, teacher, "distill_criterion")
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.objective.labels):
            ce = loss_of(self.criterion, output, target)
        learned = ce + kd if self.objective.labels else kd
        return self.objective.share * learned, ce, kd


def _detach(leaf: Any) -> Any:
    return leaf.detach() if isinstance(leaf, Tensor) else leaf


def _detached(part: BitWidthLoss) -> BitWidthLoss:
    return BitWidthLoss(part.bits, *tree_map(_detach, part[1:]))


def _collect(parts: list[BitWidthLoss], loss: Any) -> dict[str, Any]:
    return {
        "loss": loss,
        "outputs": {part.bits: part.output for part in parts},
        "ce": {part.bits: part.ce.detach() for part in parts},
        "kd": {part.bits: part.kd.detach() for part in parts if part.kd is not None},
    }
