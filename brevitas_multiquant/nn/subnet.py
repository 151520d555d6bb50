"""One bit-width as a plain Brevitas network: stock layers, constants instead of ranges."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from brevitas_multiquant.core.output_structure import ONE_TENSOR, OutputStructure, Value, run_part
from brevitas_multiquant.core.paused_collector import collector_paused
from brevitas_multiquant.core.precision import Assignment, Setting
from brevitas_multiquant.nn.given import float32_network
from brevitas_multiquant.nn.network import MultiQuantNet
from brevitas_multiquant.nn.pruning import remove_pruned
from brevitas_multiquant.quant.exact import exact_arithmetic
from brevitas_multiquant.quant.layers import CodeLayer
from brevitas_multiquant.quant.member import frozen_copy


class Subnet(nn.Module):
    """The plain network of one bit-width, for evaluation and export.

    Args:
        stem, branches, head: frozen parts; only the branches that run are here.
        bits: the network's bit-width.
        merge: merges the branch outputs.
        inexact: layers whose sums of codes may pass what fp32 holds.
        setting: ``bits``, or the assignment.
        structure: how tensors make up what the network returns.
    """

    def __init__(
        self,
        stem: nn.Module,
        branches: Sequence[nn.Module],
        head: nn.Module,
        bits: int,
        merge: nn.Module,
        inexact: Sequence[str] = (),
        setting: Setting | None = None,
        structure: OutputStructure = ONE_TENSOR,
    ) -> None:
        super().__init__()
        self.stem = stem
        self.branches = nn.ModuleList(branches)
        self.head = head
        self.bits = bits
        self.setting = bits if setting is None else setting
        self.merge = merge
        self.inexact = tuple(inexact)
        self.structure = structure

    def forward(self, x: Tensor) -> Any:
        """What the network returns of images (N, C, H, W): logits (N, classes) of a classifier."""
        with exact_arithmetic(x.device):
            features = self.stem(x)
            outputs = [run_part(branch, features) for branch in self.branches]
            given: Value = run_part(self.head, self.merge(outputs))
        return given if self.structure.is_one_tensor else self.structure.rebuild(given)


def extract_subnet(net: MultiQuantNet, bits: int | Assignment) -> Subnet:
    """One bit-width as a plain Brevitas network, equal to the bit in evaluation.

    Stock ``QuantConv2d``, ``QuantLinear`` and ``QuantIdentity`` at scale 1, ranges and norms as
    constants in front and behind: nothing of this package's quantizers is left in it. Channels of
    no bits are gone, where the graph allows that (`brevitas_multiquant.nn.pruning`).

    Args:
        net: the network; not changed, not even for a moment.
        bits: one of ``net.bits``, or an assignment.

    Raises:
        NetworkError: not a `MultiQuantNet`.
        PrecisionError: a network that is not in fp32.
        BitWidthError: nothing that the network can run at.
        CalibrationError: ranges that have seen no data yet.

    Example:
        >>> from torchvision.models import resnet18
        >>> from brevitas_multiquant import calibrate, multiquantize
        >>> net = multiquantize(resnet18(num_classes=10), [2, 4], input_shape=(1, 3, 32, 32))
        >>> images = torch.rand(4, 3, 32, 32)
        >>> calibrate(net, [images])
        >>> with torch.no_grad(), net.eval().at_bits(2):
        ...     torch.equal(extract_subnet(net, 2)(images), net(images))
        True
    """
    net = float32_network(net, "extract_subnet")
    with collector_paused(), torch.no_grad():
        view = net.view(net._checked("extract_subnet", bits))
        active = view.active_bits
        running = view.branches_at(active)
        parts = [frozen_copy(branch, active) for branch in running]
        for part in parts:
            remove_pruned(part)
        shared = (view.stem, view.head, view.merge)
        stem, head, merge = (frozen_copy(part, active) for part in shared)
        inexact = [name for branch in running for name in _inexact(branch)]
    names = list(dict.fromkeys(inexact))
    subnet = Subnet(stem, parts, head, active, merge, names, view.setting, net.structure).eval()
    return subnet.requires_grad_(False)


def _inexact(branch: nn.Module) -> list[str]:
    layers = [(n, layer) for n, layer in branch.named_modules() if isinstance(layer, CodeLayer)]
    return [name for name, layer in layers if not layer.is_exact]
