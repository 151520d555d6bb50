"""What each bit-width costs: MACs, BitOPs, bytes, branches. Counted, not estimated."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from brevitas_multiquant.errors import ConfigError
from brevitas_multiquant.nn.given import given_network
from brevitas_multiquant.nn.network import MultiQuantNet, device_of
from brevitas_multiquant.nn.shared import SharedParameter
from brevitas_multiquant.nn.switchable import Switchable, SwitchableNorm
from brevitas_multiquant.quant.layers import WEIGHTED, CodeLayer, weight_range
from brevitas_multiquant.quant.ranges import LearnedRange
from brevitas_multiquant.quant.slices import LayerSlice
from brevitas_multiquant.selection import BRANCH_BITS, half_branch

FLOAT_BYTES = 4


@dataclass(frozen=True)
class BitWidthCost:
    """Cost of one bit-width, per image.

    Args:
        macs: multiply-accumulates of the quantized layers.
        float_macs: multiply-accumulates of the float stem and head.
        bitops: ``macs`` x weight bits x activation bits.
        bytes: storage of this bit-width alone.
        branches: indices of the branches that run, the last one at half if the bit-width is odd.
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
            branches = ",".join(map(str, cost.branches)) + ("/2" if bits % BRANCH_BITS else "")
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
        net: the network; not changed, not even for a moment.
        input_shape: (N, C, H, W); default: the shape it was built with. Counts are per image.

    Raises:
        NetworkError: not a `MultiQuantNet`.
        ConfigError: images of that shape do not pass the network.

    Example:
        >>> from torchvision.models import resnet18
        >>> from brevitas_multiquant import multiquantize
        >>> costs = cost(multiquantize(resnet18(), [2, 4], input_shape=(1, 3, 64, 64)))
        >>> costs[4].macs == 2 * costs[2].macs, costs[4].bitops == 4 * costs[2].bitops
        (True, True)
    """
    net = given_network(net, "cost")
    shape = input_shape or net.input_shape or (1, 3, 224, 224)
    try:
        branch_macs, float_macs = _macs(net, shape)
    except (RuntimeError, ValueError) as error:
        raise ConfigError(
            f"input_shape: expected (1, C, H, W) that the network takes, got {shape}: {error}"
        ) from error
    costs = {}
    for bits, branches in net.selection.items():
        macs = sum(branch_macs[is_narrow] for is_narrow in _narrow(net, bits))
        bitops = macs * BRANCH_BITS * bits
        costs[bits] = BitWidthCost(macs, float_macs, bitops, _bytes(net, (bits,)), branches)
    return Cost(costs, _bytes(net, net.bits), _float_bytes(net))


def _narrow(net: MultiQuantNet, bits: int) -> list[bool]:
    """For each branch that runs at a bit-width, whether it is a half one."""
    half = half_branch(net.selection, bits)
    return [index == half for index in net.selection[bits]]


def _macs(net: MultiQuantNet, shape: tuple[int, ...]) -> tuple[dict[bool, int], int]:
    """MACs per image of a whole and of a half branch (by ``is half``), and of stem and head."""
    net = net.view().eval()  # modes, hooks and bit-width are its own
    runs = {
        is_half: (bits, branch)
        for bits in net.bits
        for is_half, branch in zip(_narrow(net, bits), net.branches_at(bits), strict=True)
    }
    parameter = next(net.parameters())
    image = torch.zeros((1, *shape[1:]), device=device_of(net), dtype=parameter.dtype)
    with torch.no_grad(), net.floating():
        features, stem = _counted(net.stem, image)
        branches = {}
        for is_half, (bits, branch) in runs.items():
            with net.at_bits(bits):
                merged, branches[is_half] = _counted(branch, features)
        _, head = _counted(net.head, merged)
    return branches, stem + head


def _counted(part: nn.Module, x: Tensor) -> tuple[Tensor, int]:
    """What a part gives for one image, and the MACs of its layers."""
    counts: list[int] = []

    def count(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        counts.append(layer_macs(layer, output))

    layers = [module for module in part.modules() if isinstance(module, WEIGHTED)]
    hooks = [layer.register_forward_hook(count) for layer in layers]
    try:
        return part(x), sum(counts)
    finally:
        for hook in hooks:
            hook.remove()


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
    running = {id(branch): branch for bit in bits for branch in net.branches_at(bit)}
    parts = [net.stem, *running.values(), net.merge, net.head]
    total = sum(_bytes_at(part, bits) for part in parts)
    for index, half in net.halves.items():
        if id(half) in running and id(net.branches[int(index)]) not in running:
            total += _borrowed_bytes(half)
    return total


def _borrowed_bytes(half: nn.Module) -> int:
    """Storage of what a half branch uses of the whole one, where the whole one is not stored."""
    total = 0
    for module in half.modules():
        if isinstance(module, LayerSlice):
            own = dict(module.whole.named_parameters(recurse=False))
            total += _packed_bytes(module.weight)
            total += _floats(p[: module.kept[0]] for name, p in own.items() if name != "weight")
            total += _part_bytes(weight_range(module))
        elif isinstance(module, SharedParameter):
            total += _floats([module()])
    return total


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
    if isinstance(module, CodeLayer) and own:
        weight = own.pop("weight")
        return _packed_bytes(weight) + _floats(own.values())
    if isinstance(module, nn.modules.batchnorm._BatchNorm):
        return 2 * module.num_features * FLOAT_BYTES
    return _floats(own.values())


def _packed_bytes(weight: Tensor) -> int:
    return -(-weight.numel() * BRANCH_BITS // 8)


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
