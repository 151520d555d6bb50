"""One bit-width as a plain Brevitas network: stock layers, constants instead of ranges."""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from brevitas.nn import QuantConv1d, QuantConv2d, QuantIdentity, QuantLinear
from torch import Tensor, nn

from brevitas_multiquant.core.clip_quantize import activation_levels, guarded_upper
from brevitas_multiquant.core.paused_collector import collector_paused
from brevitas_multiquant.core.precision import Assignment
from brevitas_multiquant.nn.given import float32_network
from brevitas_multiquant.nn.network import MultiQuantNet
from brevitas_multiquant.nn.plain import (
    Constant,
    IntWeightConst,
    OutputScale,
    RangeToCodes,
    ScaleShift,
    UintActConst,
)
from brevitas_multiquant.nn.shared import SharedParameter
from brevitas_multiquant.nn.switchable import (
    Switchable,
    SwitchableQuantizer,
    is_scale_and_shift,
    scale_and_shift,
)
from brevitas_multiquant.quant.exact import exact_arithmetic
from brevitas_multiquant.quant.layers import CodeLayer, as_output_channels, geometry, plain_conv2d
from brevitas_multiquant.quant.proxies import activation_tensor_quant
from brevitas_multiquant.quant.ranges import LearnedRange


class Subnet(nn.Module):
    """The plain network of one bit-width, for evaluation and export.

    Args:
        stem, branches, head: frozen parts; only the branches that run are here.
        bits: the bit-width.
        merge: merges the branch outputs.
        inexact: layers whose sums of codes may pass what fp32 holds.
    """

    def __init__(
        self,
        stem: nn.Module,
        branches: Sequence[nn.Module],
        head: nn.Module,
        bits: int,
        merge: nn.Module,
        inexact: Sequence[str] = (),
    ) -> None:
        super().__init__()
        self.stem = stem
        self.branches = nn.ModuleList(branches)
        self.head = head
        self.bits = bits
        self.merge = merge
        self.inexact = tuple(inexact)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, classes) of the images (N, C, H, W)."""
        with exact_arithmetic(x.device):
            features = self.stem(x)
            outputs = [branch(features) for branch in self.branches]
            return self.head(self.merge(outputs))


def extract_subnet(net: MultiQuantNet, bits: int | Assignment) -> Subnet:
    """One bit-width as a plain Brevitas network, equal to the bit in evaluation.

    Stock ``QuantConv2d``, ``QuantLinear`` and ``QuantIdentity`` at scale 1, ranges and norms as
    constants in front and behind: nothing of this package's quantizers is left in it.

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
        parts = [_frozen(branch, active) for branch in running]
        stem, head, merge = (_frozen(part, active) for part in (view.stem, view.head, view.merge))
        inexact = [name for branch in running for name in _inexact(branch)]
    subnet = Subnet(stem, parts, head, active, merge, list(dict.fromkeys(inexact))).eval()
    return subnet.requires_grad_(False)


def _inexact(branch: nn.Module) -> list[str]:
    layers = [(n, layer) for n, layer in branch.named_modules() if isinstance(layer, CodeLayer)]
    return [name for name, layer in layers if not layer.is_exact]


def _frozen(part: nn.Module, bits: int) -> nn.Module:
    """A copy of a part in which every switchable module is the plain one of ``bits``."""
    replacements: dict[int, Any] = {
        id(module): plain
        for name, module in part.named_modules()
        if (plain := _plain(name, module, bits)) is not None
    }
    return copy.deepcopy(part, replacements)  # what is replaced is not copied first


def _plain(name: str, module: Any, bits: int) -> nn.Module | None:
    if hasattr(module, "plain"):
        return module.plain(bits, f"{name} at {bits} bits")
    if isinstance(module, SwitchableQuantizer):
        return _plain_quantizer(f"{name} at {bits} bits", module[str(bits)], module.dial.bits)
    if isinstance(module, Switchable):
        member = module[str(bits)]
        return _plain_norm(member) if is_scale_and_shift(member) else copy.deepcopy(member)
    if isinstance(module, CodeLayer):
        return _plain_layer(module)
    if is_scale_and_shift(module):
        return _plain_norm(module)
    if isinstance(module, SharedParameter):
        return Constant(module())
    return plain_conv2d(module)


def _plain_norm(norm: Any) -> ScaleShift:
    return ScaleShift(*scale_and_shift(norm))


def _plain_quantizer(where: str, quantizer: Any, bits: int) -> nn.Sequential:
    learned: LearnedRange = activation_tensor_quant(quantizer).range_impl
    learned.require_ready(where)
    levels = activation_levels(bits)
    lower = learned.lower
    upper = guarded_upper(lower, learned.upper)
    plain = QuantIdentity(act_quant=UintActConst, bit_width=bits, scaling_init=float(levels))
    device = lower.device
    return nn.Sequential(RangeToCodes(lower, levels / (upper - lower)), plain.to(device))


def _plain_layer(layer: Any) -> nn.Sequential:
    plain_type: Any = next(plain for kind, plain in _PLAIN if isinstance(layer, kind))
    plain = plain_type(
        **geometry(layer),
        bias=False,
        weight_quant=IntWeightConst,
        weight_bit_width=layer.weight_format.integer_bits,
        weight_narrow_range=layer.weight_format.is_narrow,
        weight_scaling_init=float(layer.weight_format.divisor),
    )
    if getattr(layer, "is_same_padded_strided", False):
        plain.is_same_padded_strided = True
    codes = layer.quant_weight()
    plain.weight = nn.Parameter(codes.detach().clone(), requires_grad=False)
    bias = None if layer.bias is None else as_output_channels(layer, layer.bias).detach().clone()
    scale = OutputScale(layer.output_scale, bias)
    return nn.Sequential(plain, scale).to(layer.weight.device)


_PLAIN = ((nn.Conv2d, QuantConv2d), (nn.Conv1d, QuantConv1d), (nn.Linear, QuantLinear))
