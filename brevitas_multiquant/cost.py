"""What each bit-width costs: MACs, BitOPs, bytes, branches. Counted, not estimated."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from brevitas_multiquant.errors import ConfigError
from brevitas_multiquant.nn.network import MultiQuantNet, device_of
from brevitas_multiquant.nn.switchable import Switchable, SwitchableNorm
from brevitas_multiquant.quant.layers import WEIGHTED, CodeLayer
from brevitas_multiquant.quant.ranges import LearnedRange
from brevitas_multiquant.selection import BRANCH_BITS

FLOAT_BYTES = 4


@dataclass(frozen=True)
class BitWidthCost:
    """Cost of one bit-width, per image.

    Args:
        macs: multiply-accumulates of the quantized layers.
        float_macs: multiply-accumulates of the float stem and head.
        bitops: ``macs`` x weight bits x activation bits.
        bytes: storage of this bit-width alone.
        branches: indices of the branches that run.
    """

    macs: int
    float_macs: int
    bitops: int
    bytes: int
    branches: tuple[int, ...]


class Cost(dict[int, BitWidthCost]):
    """Bit-width -> its cost; prints as a table.

    Args:
        costs: bit-width -> cost.
        total_bytes: storage of the whole network, all bit-widths.
        float_bytes: storage of the float model it was made from, fp32.
    """

    def __init__(self, costs: dict[int, BitWidthCost], total_bytes: int, float_bytes: int) -> None:
        super().__init__(costs)
        self.total_bytes = total_bytes
        self.float_bytes = float_bytes

    def __str__(self) -> str:
        header = f"{'bits':>4}  {'branches':<12}{'MMACs':>10}{'float MMACs':>13}"
        lines = [header + f"{'GBitOPs':>10}{'MB':>9}"]
        for bits, cost in self.items():
            branches = ",".join(map(str, cost.branches))
            lines.append(
                f"{bits:>4}  {branches:<12}{cost.macs / 1e6:>10.1f}{cost.float_macs / 1e6:>13.1f}"
                f"{cost.bitops / 1e9:>10.2f}{cost.bytes / 1e6:>9.3f}"
            )
        lines.append(
            f"all bit-widths in one file: {self.total_bytes / 1e6:.3f} MB; "
            f"float model: {self.float_bytes / 1e6:.3f} MB (1 MB = 1e6 bytes)"
        )
        return "\n".join(lines)


def cost(net: MultiQuantNet, input_shape: tuple[int, ...] | None = None) -> Cost:
    """MACs, BitOPs, bytes and branches of every bit-width.

    Bytes follow the paper's storage rule: 2 bits a body weight; fp32 stem and head; two floats a
    channel for each norm, bit-width and branch; two floats for each range.

    Args:
        net: the network.
        input_shape: (N, C, H, W); default: the shape it was built with. Counts are per image.

    Raises:
        ConfigError: images of that shape do not pass the network.

    Example:
        >>> from torchvision.models import resnet18
        >>> from brevitas_multiquant import multiquantize
        >>> costs = cost(multiquantize(resnet18(), [2, 4], input_shape=(1, 3, 64, 64)))
        >>> costs[4].macs == 2 * costs[2].macs, costs[4].bitops == 4 * costs[2].bitops
        (True, True)
    """
    shape = input_shape or net.input_shape or (1, 3, 224, 224)
    try:
        branch_macs, float_macs = _macs(net, shape)
    except (RuntimeError, ValueError) as error:
        raise ConfigError(
            f"input_shape: expected (1, C, H, W) that the network takes, got {shape}: {error}"
        ) from error
    costs = {}
    for bits, branches in net.selection.items():
        macs = branch_macs * len(branches)
        bitops = macs * BRANCH_BITS * bits
        costs[bits] = BitWidthCost(macs, float_macs, bitops, _bytes(net, (bits,)), branches)
    return Cost(costs, _bytes(net, net.bits), _float_bytes(net))


def _macs(net: MultiQuantNet, shape: tuple[int, ...]) -> tuple[int, int]:
    """MACs per image of one branch, and of stem and head."""
    counts = {True: 0, False: 0}

    def count(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        counts[isinstance(layer, CodeLayer)] += layer_macs(layer, output) // len(output)

    hooks = [
        module.register_forward_hook(count)
        for part in (net.stem, net.branches[0], net.head)
        for module in part.modules()
        if isinstance(module, WEIGHTED)
    ]
    bits = next(bit for bit, branches in net.selection.items() if 0 in branches)
    modes = [(module, module.training) for module in net.modules()]
    parameter = next(net.parameters())
    image = torch.zeros((1, *shape[1:]), device=device_of(net), dtype=parameter.dtype)
    try:
        with torch.no_grad(), net.floating(), net.at_bits(bits):
            net.eval().head(net.branches[0](net.stem(image)))
    finally:
        for hook in hooks:
            hook.remove()
        for module, training in modes:
            module.training = training
    return counts[True], counts[False]


def layer_macs(layer: nn.Module, output: Tensor) -> int:
    """Multiply-accumulates of one call of a convolution or linear layer.

    Args:
        layer: the layer.
        output: what it gave, batch included.

    Example:
        >>> conv = nn.Conv2d(3, 8, 3, padding=1)
        >>> layer_macs(conv, conv(torch.zeros(1, 3, 4, 4)))
        3456
    """
    weight = layer.weight
    assert isinstance(weight, Tensor)
    return output.numel() * weight[0].numel()


def _bytes(net: MultiQuantNet, bits: tuple[int, ...]) -> int:
    """Storage of the given bit-widths."""
    used = {index for bit in bits for index in net.selection[bit]}
    parts = [net.stem, *(net.branches[index] for index in used), net.merge, net.head]
    return sum(_bytes_at(part, bits) for part in parts)


def _bytes_at(part: nn.Module, bits: tuple[int, ...]) -> int:
    unused = {
        id(inner)
        for module in part.modules()
        if isinstance(module, Switchable)
        for key, member in module.items()
        if int(key) not in bits
        for inner in member.modules()
    }
    return sum(_module_bytes(m) for m in part.modules() if id(m) not in unused)


def _part_bytes(part: nn.Module) -> int:
    return sum(_module_bytes(module) for module in part.modules())


def _module_bytes(module: nn.Module) -> int:
    """Storage of a module's own parameters, not its children's."""
    own = dict(module.named_parameters(recurse=False))
    if isinstance(module, CodeLayer):
        weight = own.pop("weight")
        return -(-weight.numel() * BRANCH_BITS // 8) + _floats(own.values())
    if isinstance(module, nn.modules.batchnorm._BatchNorm):
        return 2 * module.num_features * FLOAT_BYTES
    return _floats(own.values())


def _floats(parameters: Iterable[Tensor]) -> int:
    return FLOAT_BYTES * sum(p.numel() for p in parameters)


def _float_bytes(net: MultiQuantNet) -> int:
    """fp32 storage of the float model: stem, head and one branch with one norm a place."""
    one_branch = 0
    skipped: set[int] = set()
    for module in net.branches[0].modules():
        if isinstance(module, SwitchableNorm):
            members = list(module.values())
            skipped |= {id(part) for member in members[1:] for part in member.modules()}
        if isinstance(module, LearnedRange) or id(module) in skipped:
            continue
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            one_branch += _module_bytes(module)
        else:
            one_branch += _floats(module.parameters(recurse=False))
    return one_branch + _part_bytes(net.stem) + _part_bytes(net.head)
