"""Top-1 accuracy and confusion, a bit-width at a time."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from accelerate import Accelerator
from torch import Tensor

from brevitas_multiquant.core.precision import Assignment
from brevitas_multiquant.recipes.network.modes import evaluating
from brevitas_multiquant.recipes.network.protocols import RunsAtBits

SettingT = TypeVar("SettingT", int, int | Assignment)
Batches = Iterable[tuple[Tensor, Tensor]]

MOST_CLASSES = 1000
"""Of a confusion matrix: it is kept on the device, 8 bytes for each pair of classes."""


@dataclass(frozen=True)
class Evaluation:
    """What the validation images gave.

    Args:
        top1: bit-width -> percent of the images whose largest logit is the label.
        confusion: bit-width -> (C, C) numbers of images, row: the label, column: the largest logit;
            empty for more than `MOST_CLASSES` classes.
    """

    top1: dict[int, float]
    confusion: Mapping[int, Tensor] = field(default_factory=dict)


@torch.no_grad()
def top1(
    net: RunsAtBits,
    batches: Batches,
    bits: Sequence[SettingT],
    accelerator: Accelerator,
) -> dict[SettingT, float]:
    """Percent of the images whose largest logit is the label, over all processes.

    Args:
        net: a multi-branch network, or a float one, whose single "bit-width" is only a name.
        batches: (images (B, 3, H, W), labels (B,)) of this process's shard.
        bits: bit-widths, and assignments, to evaluate.
        accelerator: sums the counts and chooses the arithmetic.
    """
    counts = torch.zeros(len(bits) + 1, dtype=torch.int64, device=accelerator.device)
    with evaluating(net):
        for images, labels in batches:
            counts[-1] += len(labels)
            for index, bit in enumerate(bits):
                counts[index] += (_largest(net, images, bit, accelerator) == labels).sum()
    *correct, seen = accelerator.reduce(counts, "sum").tolist()
    return {bit: 100 * hits / seen for bit, hits in zip(bits, correct, strict=True)}


@torch.no_grad()
def evaluation(
    net: RunsAtBits,
    batches: Batches,
    bits: Sequence[int],
    accelerator: Accelerator,
    num_classes: int,
) -> Evaluation:
    """Top-1 and confusion of one pass over the images; arguments as of `top1`.

    Args:
        net: the network.
        batches: of this process.
        bits: to evaluate.
        accelerator: of this process.
        num_classes: C, of the network's logits; labels are from 0 to C - 1.
    """
    if num_classes > MOST_CLASSES:
        return Evaluation(top1(net, batches, bits, accelerator))
    shape = (len(bits), num_classes * num_classes)
    pairs = torch.zeros(shape, dtype=torch.int64, device=accelerator.device)
    with evaluating(net):
        for images, labels in batches:
            one_each = torch.ones_like(labels)
            for row, bit in zip(pairs, bits, strict=True):
                predicted = _largest(net, images, bit, accelerator)
                row.scatter_add_(0, labels * num_classes + predicted, one_each)
    counts = accelerator.reduce(pairs, "sum").view(-1, num_classes, num_classes).cpu()
    confusion = dict(zip(bits, counts, strict=True))
    return Evaluation({bit: top1_of(one) for bit, one in confusion.items()}, confusion)


def top1_of(confusion: Tensor) -> float:
    """Percent of the images that lie on the diagonal.

    Example:
        >>> top1_of(torch.tensor([[3, 1], [0, 4]]))
        87.5
    """
    return 100 * int(confusion.trace()) / int(confusion.sum())


def _largest(
    net: RunsAtBits, images: Tensor, bits: int | Assignment, accelerator: Accelerator
) -> Tensor:
    with net.at_bits(bits), accelerator.autocast():
        return net(images).argmax(1)
