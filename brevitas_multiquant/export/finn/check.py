"""Preflight: everything that keeps a network from dataflow hardware, before it is trained."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from brevitas_multiquant.core.copying import copied
from brevitas_multiquant.core.precision import Assignment, Setting, key_of
from brevitas_multiquant.export.finn.lower import problems_of
from brevitas_multiquant.export.request import requested_settings
from brevitas_multiquant.export.sample import smooth_images
from brevitas_multiquant.nn.given import float32_network
from brevitas_multiquant.nn.network import MultiQuantNet, device_of
from brevitas_multiquant.nn.subnet import extract_subnet
from brevitas_multiquant.quant.ranges import LearnedRange
from brevitas_multiquant.training.calibrate import calibrate


@dataclass(frozen=True)
class Violation:
    """One thing that does not map.

    Args:
        where: module path.
        advice: what is wrong, and what to do.
        bits: bit-widths, and assignments, at which it is so.
    """

    where: str
    advice: str
    bits: tuple[Setting, ...]

    def __str__(self) -> str:
        return f"{self.where}: {self.advice}"

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "where": self.where,
            "advice": self.advice,
            "at": [key_of(setting) for setting in self.bits],
        }


def check_finn(net: MultiQuantNet, *, assignments: Sequence[Assignment] = ()) -> list[Violation]:
    """Every violation of the mapping rules, all at once; none means that `export_finn` will work.

    Any assignment maps where its bit-width does, as far as the network's own structure goes: both
    operands of an addition pass one quantizer, whose bits, like those in front of averages and of
    the merge, follow the network's bit-width (`profiles.finn.modules.operand_bits`). What an
    assignment may change is how large sums get.

    Args:
        net: a network, trained or not; not changed, not even for a moment. Ranges that have seen
            no data are initialised from noise on a copy, since what maps hardly depends on them.
        assignments: bits for each site, checked besides all of ``net.bits``.

    Returns:
        Violations in execution order, the same one at several settings once.

    Raises:
        NetworkError, PrecisionError: not a `MultiQuantNet`, or one that is not in fp32.
        BitWidthError: an assignment that does not fit the network.

    Example:
        >>> from torchvision.models import resnet18
        >>> from brevitas_multiquant import multiquantize
        >>> net = multiquantize(resnet18(num_classes=10), [2], input_shape=(1, 3, 32, 32))
        >>> print(check_finn(net)[0])
        stem.conv1: Conv2d with float weights: use a plain nn.Conv2d or nn.Linear, not one that \
computes its weights or has a forward of its own, in a network built with profile='finn'
    """
    net = float32_network(net, "check_finn")
    shape = net.input_shape or (1, 3, 224, 224)
    if not all(m.ready for m in net.modules() if isinstance(m, LearnedRange)):
        net = copied(net, {})
        calibrate(net, [smooth_images((2, *shape[1:])).to(device_of(net))])  # type: ignore[arg-type]
    found: dict[tuple[str, str], list[Setting]] = {}
    for setting in requested_settings(net, None, assignments):
        subnet = extract_subnet(net, setting).cpu()
        for problem in problems_of(subnet, branch_names(net, subnet.bits), shape):
            found.setdefault(problem, []).append(setting)
    return [Violation(where, advice, tuple(bits)) for (where, advice), bits in found.items()]


def branch_name(index: int) -> str:
    """What a branch is called in messages, and its half branch too, which is a part of it."""
    return f"branches.{index}"


def branch_names(net: MultiQuantNet, bits: int) -> list[str]:
    """Names of the branches that run at a bit-width."""
    return [branch_name(index) for index in net.selection[bits]]
