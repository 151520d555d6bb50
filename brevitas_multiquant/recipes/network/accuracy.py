"""Top-1 accuracy, a bit-width at a time."""

from collections.abc import Iterable, Sequence
from typing import TypeVar

import torch
from accelerate import Accelerator
from torch import Tensor

from brevitas_multiquant.core.precision import Assignment
from brevitas_multiquant.recipes.network.modes import evaluating
from brevitas_multiquant.recipes.network.protocols import RunsAtBits

SettingT = TypeVar("SettingT", int, int | Assignment)


@torch.no_grad()
def top1(
    net: RunsAtBits,
    batches: Iterable[tuple[Tensor, Tensor]],
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
                with net.at_bits(bit), accelerator.autocast():
                    predicted = net(images).argmax(1)
                counts[index] += (predicted == labels).sum()
    *correct, seen = accelerator.reduce(counts, "sum").tolist()
    return {bit: 100 * hits / seen for bit, hits in zip(bits, correct, strict=True)}
