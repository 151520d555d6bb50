"""What each bit-width costs: MACs, BitOPs, bytes, branches. Counted, not estimated."""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor, nn

from brevitas_multiquant.core.power_of_two import EDGE_BITS
from brevitas_multiquant.core.selection import BRANCH_BITS, bits_of_uses, uses_at
from brevitas_multiquant.errors import ConfigError
from brevitas_multiquant.nn.given import given_network
from brevitas_multiquant.nn.network import MultiQuantNet, device_of
from brevitas_multiquant.nn.shared import SharedParameter
from brevitas_multiquant.nn.stored import entries_of, own_entries, parts_of
from brevitas_multiquant.nn.switchable import Switchable, SwitchableNorm
from brevitas_multiquant.quant.layers import WEIGHTED, CodeLayer, weight_range
from brevitas_multiquant.quant.ranges import LearnedRange
from brevitas_multiquant.quant.slices import LayerSlice

FLOAT_BYTES = 4
FLOAT_BITS = 8 * FLOAT_BYTES


@dataclass(frozen=True)
class BitWidthCost:
    """Cost of one bit-width, per image.

    Args:
        macs: multiply-accumulates of the branches' 2-bit layers.
        float_macs: multiply-accumulates of float layers: stem and head of the profile ``paper``.
        bitops: MACs x weight bits x activation bits: ``macs`` x 2 x b + ``edge_macs`` x 8 x 8.
        bytes: storage of this bit-width alone, each weight in the bits that it has.
        branches: indices of the branches that run, the last one at half if the bit-width is odd.
        edge_macs: multiply-accumulates of 8-bit layers: stem and head of the profile ``finn``.
    """

    macs: int
    float_macs: int
    bitops: int
    bytes: int
    branches: tuple[int, ...]
    edge_macs: int = 0


class Cost(dict[int, BitWidthCost]):
    """Bit-width -> its cost; prints as a table.

    Args:
        costs: bit-width -> cost.
        total_bytes: storage of the whole network, all bit-widths, each weight in its bits.
        float_bytes: storage of the float model it was made from, fp32.
        file_bytes: the numbers in a file of `brevitas_multiquant.save_packed`: ``total_bytes``, but
            8-bit weights are there in fp32; default ``total_bytes``.
    """

    def __init__(
        self,
        costs: dict[int, BitWidthCost],
        total_bytes: int,
        float_bytes: int,
        file_bytes: int | None = None,
    ) -> None:
        super().__init__(costs)
        self.total_bytes = total_bytes
        self.float_bytes = float_bytes
        self.file_bytes = total_bytes if file_bytes is None else file_bytes

    def __str__(self) -> str:
        edges = any(cost.edge_macs for cost in self.values())
        header = f"{'bits':>4}  {'branches':<12}{'MMACs':>10}"
        header += f"{'8-bit MMACs':>13}" if edges else ""
        lines = [header + f"{'float MMACs':>13}{'GBitOPs':>10}{'MB':>9}"]
        for bits, cost in self.items():
            branches = ",".join(map(str, uses_at({bits: cost.branches}, bits)))
            line = f"{bits:>4}  {branches:<12}{cost.macs / 1e6:>10.1f}"
            line += f"{cost.edge_macs / 1e6:>13.1f}" if edges else ""
            line += f"{cost.float_macs / 1e6:>13.1f}{cost.bitops / 1e9:>10.2f}"
            lines.append(f"{line}{cost.bytes / 1e6:>9.3f}")
        lines.append(
            f"all bit-widths in one file: {self.file_bytes / 1e6:.3f} MB; "
            f"float model: {self.float_bytes / 1e6:.3f} MB (1 MB = 1e6 bytes)"
        )
        if self.file_bytes != self.total_bytes:
            lines.append(
                f"all bit-widths in hardware: {self.total_bytes / 1e6:.3f} MB; "
                "the file has 8-bit weights in fp32"
            )
        return "\n".join(lines)


def cost(net: MultiQuantNet, input_shape: tuple[int, ...] | None = None) -> Cost:
    """MACs, BitOPs, bytes and branches of every bit-width.

    Bytes follow the paper's storage rule: 2 bits a body weight; fp32 stem and head; two floats a
    channel for each norm, bit-width and branch; two floats for each range. With the profile
    ``finn`` stem and head have 8-bit weights, a byte each, and one float a layer, their scale.

    What is no convolution or linear layer is in no MACs: additions, norms, activation functions,
    pooling, and fixed filters such as blur pooling, float wherever they stand. The numbers of such
    a filter are in the bytes where they are in the state dict, and so in the file.

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
        branch_macs, shared_macs = _macs(net, shape)
    except (RuntimeError, ValueError) as error:
        raise ConfigError(
            f"input_shape: expected (1, C, H, W) that the network takes, got {shape}: {error}"
        ) from error
    costs = {}
    for bits, branches in net.selection.items():
        macs = sum((branch_macs[u.width] for u in uses_at(net.selection, bits)), shared_macs)
        code, edge, float_ = (macs[own] for own in (BRANCH_BITS, EDGE_BITS, FLOAT_BITS))
        bitops = code * BRANCH_BITS * bits + edge * EDGE_BITS * EDGE_BITS
        costs[bits] = BitWidthCost(code, float_, bitops, _bytes(net, (bits,)), branches, edge)
    return Cost(costs, _bytes(net, net.bits), _float_bytes(net), _file_bytes(net))


Macs = Counter[int]
"""Bits of a weight -> multiply-accumulates of layers with such weights."""


def _macs(net: MultiQuantNet, shape: tuple[int, ...]) -> tuple[dict[Fraction, Macs], Macs]:
    """MACs per image of a branch by its width, and of stem and head."""
    net = net.view().eval()  # modes, hooks and bit-width are its own
    runs = {use.width: (bits[0], use) for use, bits in bits_of_uses(net.selection).items()}
    parameter = next(net.parameters())
    image = torch.zeros((1, *shape[1:]), device=device_of(net), dtype=parameter.dtype)
    with torch.no_grad(), net.floating():
        features, stem = _counted(net.stem, image)
        branches = {}
        for width, (bits, use) in runs.items():
            with net.at_bits(bits):
                merged, branches[width] = _counted(net.branch_of(use), features)
        _, head = _counted(net.head, merged)
    return branches, stem + head


def _counted(part: nn.Module, x: Tensor) -> tuple[Tensor, Macs]:
    """What a part gives for one image, and the MACs of its layers."""
    counts: Macs = Counter()

    def count(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        counts[_weight_bits(layer)] += layer_macs(layer, output)

    layers = [module for module in part.modules() if isinstance(module, WEIGHTED)]
    hooks = [layer.register_forward_hook(count) for layer in layers]
    try:
        return part(x), counts
    finally:
        for hook in hooks:
            hook.remove()


def _weight_bits(layer: nn.Module) -> int:
    return getattr(layer, "stored_bits", FLOAT_BITS)


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
    """Storage of a module's own numbers, not its children's, each weight in its bits."""
    return _stored_bytes(module) - _saved_bytes(module)


def _stored_bytes(module: nn.Module) -> int:
    """What a packed file has of a module, its children aside."""
    return sum(entry.bytes for entry in own_entries("", module))


def _saved_bytes(module: nn.Module) -> int:
    """By how much 8-bit weights and their scale take less than the fp32 that a file has."""
    if _weight_bits(module) != EDGE_BITS:
        return 0
    weight: Any = module.weight
    return weight.numel() * (FLOAT_BYTES - EDGE_BITS // 8) - FLOAT_BYTES


def _file_bytes(net: MultiQuantNet) -> int:
    """The numbers in a packed file of the network; its header comes on top."""
    return sum(entry.bytes for part in parts_of(net) for entry in entries_of(*part))


def _packed_bytes(weight: Tensor) -> int:
    return -(-weight.numel() * BRANCH_BITS // 8)


def _floats(parameters: Iterable[Tensor]) -> int:
    return FLOAT_BYTES * sum(p.numel() for p in parameters)


def _float_bytes(net: MultiQuantNet) -> int:
    """fp32 storage of the float model: stem, head and one branch with one norm a place."""
    modules = (m for part in (net.stem, net.branches[0], net.head) for m in _of_float_model(part))
    return sum(
        _floats(module.parameters(recurse=False))
        if isinstance(module, CodeLayer)
        else _stored_bytes(module)
        for module in modules
    )


def _of_float_model(part: nn.Module) -> Iterator[nn.Module]:
    """The modules of a part that the float model has too: no ranges, and one norm a place."""
    added: set[int] = set()
    for module in part.modules():
        if isinstance(module, SwitchableNorm):
            members = list(module.values())
            added |= {id(inner) for member in members[1:] for inner in member.modules()}
        if not isinstance(module, LearnedRange) and id(module) not in added:
            yield module
