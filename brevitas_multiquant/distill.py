"""In-place distillation: the largest bit-width teaches the others (paper, section 3.5, eq. 7)."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from brevitas_multiquant.config import check_choice
from brevitas_multiquant.nn.given import bare_network
from brevitas_multiquant.nn.network import MultiQuantNet

LOSSES = ("sum", "halved")

_WRAP_THE_TASK = (
    "wrap the task instead, as DistributedDataParallel(InPlaceDistillation(net)), and compile with "
    "net.compile()"
)


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
    return F.cross_entropy(student, teacher.softmax(dim=-1))


class InPlaceDistillation(nn.Module):
    """The training task: all bit-widths of one batch, largest first.

    The largest bit-width minimises CE; every other CE + KD, where the teacher is the largest
    bit-width's output on the same batch, detached (eq. 7).

    Args:
        net: the network to train.
        loss: ``"sum"``: CE + KD as in eq. 7; ``"halved"``: (CE + KD) / 2 as in the published code.
        distill: False trains every bit-width by CE alone.
        criterion: (logits, target) -> scalar; default cross entropy.

    Raises:
        NetworkError: a wrapped network, or none.
        ConfigError: an unknown ``loss``.

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
        criterion: Callable[[Tensor, Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__()
        check_choice("loss", loss, LOSSES)
        self.net = bare_network(net, "InPlaceDistillation", _WRAP_THE_TASK)
        self.share = 1.0 if loss == "sum" else 0.5
        self.distill = distill
        self.criterion = criterion or nn.CrossEntropyLoss()

    def forward(
        self, images: Tensor, target: Tensor, bits: Sequence[int] | None = None
    ) -> dict[str, Any]:
        """One forward over all bit-widths.

        Args:
            images: (N, C, H, W).
            target: class indices (N,) or probabilities (N, classes).
            bits: the bit-widths that run in this step, default all. The largest of them teaches,
                and its branches stand in for smaller bit-widths that do not run
                (`MultiQuantNet.forward_with_stand_ins`): 2 and 8 of 2, 4, 6, 8 train all four
                for 5 branch passes instead of 10, but for what 4 and 6 have of their own, their
                norms and ranges. So let each run now and then.

        Returns:
            ``loss``: the scalar to differentiate, summed over bit-widths; ``outputs``, ``ce`` and
            ``kd``: bit-width that ran -> logits (N, classes), cross entropy, distillation loss.
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
        largest, *students = sorted(chosen or self.net.bits, reverse=True)
        with self.net.at_bits(largest):
            output, stand_ins = self._teach(images, largest, students)
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

    def _covers(self, larger: int, bits: int) -> bool:
        """Whether all branches of a bit-width run at a larger one."""
        selection = self.net.config.selection
        return set(selection[bits]) <= set(selection[larger])

    def _student_loss(
        self, output: Tensor, target: Tensor, teacher: Tensor
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """A student's share of the step's loss; its cross entropy; its distillation loss."""
        ce = self.criterion(output, target)
        if not self.distill:
            return ce, ce, None
        kd = soft_cross_entropy(output, teacher)
        return self.share * (ce + kd), ce, kd


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
