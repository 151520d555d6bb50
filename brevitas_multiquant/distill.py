"""In-place distillation: the largest bit-width teaches the others (paper, section 3.5, eq. 7)."""

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from brevitas_multiquant.config import check_choice
from brevitas_multiquant.errors import ConfigError
from brevitas_multiquant.nn.network import MultiQuantNet

LOSSES = ("sum", "halved")


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
        split_batch: the largest bit-width sees the whole batch, the others a part of it each, all
            parts alike. The expected gradient is the same; a step of 2, 4, 6 and 8 bits takes 6
            branch passes over the batch instead of 10.
        criterion: (logits, target) -> scalar; default cross entropy.

    Raises:
        ConfigError: an unknown ``loss``; with ``split_batch``, a batch of fewer images than there
            are bit-widths to share it.

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
        split_batch: bool = False,
        criterion: Callable[[Tensor, Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__()
        check_choice("loss", loss, LOSSES)
        self.net = net
        self.share = 1.0 if loss == "sum" else 0.5
        self.distill = distill
        self.split_batch = split_batch
        self.criterion = criterion or nn.CrossEntropyLoss()

    def forward(
        self, images: Tensor, target: Tensor, bits: Sequence[int] | None = None
    ) -> dict[str, Any]:
        """One forward over all bit-widths.

        Args:
            images: (N, C, H, W).
            target: class indices (N,) or probabilities (N, classes).
            bits: the bit-widths of this step; the largest of them teaches, and the losses of the
                others are weighted so that they stand for all: if they are sampled evenly, the
                expected gradient is that of a step of all bit-widths. Default: all.

        Returns:
            ``loss``: the scalar to differentiate, summed over bit-widths; ``outputs``, ``ce`` and
            ``kd``: bit-width -> logits (N, classes) of the images it saw, cross entropy,
            distillation loss.
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
        """Each bit-width's loss, largest bit-width first."""
        teacher: Tensor | None = None
        running = sorted(chosen or self.net.bits, reverse=True)
        weight = (len(self.net.bits) - 1) / max(len(running) - 1, 1)
        for bits, seen in zip(running, self._images_of(running, len(images)), strict=True):
            with self.net.at_bits(bits):
                output = self.net(images[seen])
            ce = self.criterion(output, target[seen])
            if teacher is None:
                yield BitWidthLoss(bits, ce, output, ce, None)
                teacher = output.detach()
            elif self.distill:
                kd = soft_cross_entropy(output, teacher[seen])
                yield BitWidthLoss(bits, weight * self.share * (ce + kd), output, ce, kd)
            else:
                yield BitWidthLoss(bits, weight * ce, output, ce, None)

    def _images_of(self, running: Sequence[int], images: int) -> list[slice]:
        """Which images of the batch each bit-width sees."""
        students = len(running) - 1
        if not self.split_batch or students < 2:
            return [slice(None)] * len(running)
        if images < students:
            raise ConfigError(
                f"split_batch: expected at least one image for each of the {students} smaller "
                f"bit-widths, got a batch of {images}"
            )
        bounds = [images * index // students for index in range(students + 1)]
        return [slice(None), *(slice(*pair) for pair in pairwise(bounds))]


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
