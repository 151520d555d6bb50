"""What each bit-width costs: MACs, BitOPs, bytes, branches. Counted, not estimated."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Literal, overload

from torch import nn

from brevitas_multiquant.core.config import check_choice
from brevitas_multiquant.core.precision import Assignment, Setting, network_bits
from brevitas_multiquant.core.selection import uses_at
from brevitas_multiquant.core.text_table import text_table
from brevitas_multiquant.core.units import unit_of_bytes
from brevitas_multiquant.cost.inventory import BRANCH, Layer, inventory_of
from brevitas_multiquant.cost.models import total_bitops
from brevitas_multiquant.errors import ConfigError
from brevitas_multiquant.nn.given import given_network
from brevitas_multiquant.nn.network import MultiQuantNet
from brevitas_multiquant.nn.stored import entries_of, parts_of, weights_in_words
from brevitas_multiquant.quant.entries import FLOAT_BYTES, Entry
from brevitas_multiquant.quant.member import WEIGHT, answers_of, running_modules


@dataclass(frozen=True)
class BitWidthCost:
    """Cost of one bit-width or assignment, per image.

    Args:
        macs: multiply-accumulates of the quantized layers of branches, or of the one body.
        float_macs: multiply-accumulates of float layers: stem and head of the profile ``paper``.
        bitops: MACs x weight bits x activation bits: ``macs`` x 2 x b + ``edge_macs`` x 8 x 8, and
            b in place of 2 where weights follow the bit-width; of an assignment, the bits of the
            site that each layer reads.
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
        assignments: assignment -> cost; rows of the table by their names.
        weights: how the file keeps weights, where that is not two bits each.
    """

    def __init__(
        self,
        costs: dict[int, BitWidthCost],
        total_bytes: int,
        float_bytes: int,
        file_bytes: int | None = None,
        assignments: Mapping[Assignment, BitWidthCost] | None = None,
        weights: str | None = None,
    ) -> None:
        super().__init__(costs)
        self.total_bytes = total_bytes
        self.float_bytes = float_bytes
        self.assignments = dict(assignments or {})
        self.weights = weights
        self.file_bytes = total_bytes if file_bytes is None else file_bytes

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON: counts of each bit-width and assignment, sizes in bytes."""
        return {
            "costs": {str(bits): asdict(one) for bits, one in self.items()},
            "assignments": {one.name: asdict(costs) for one, costs in self.assignments.items()},
            "total_bytes": self.total_bytes,
            "file_bytes": self.file_bytes,
            "float_bytes": self.float_bytes,
        }

    def __str__(self) -> str:
        rows = [(str(bits), bits, cost) for bits, cost in self.items()]
        rows += [(one.name, one.bits, cost) for one, cost in self.assignments.items()]
        edges = any(cost.edge_macs for _, _, cost in rows)
        one, unit = unit_of_bytes((self.file_bytes, self.float_bytes))
        power = f"1e{math.log10(one):.0f}"
        cells = [(name, *_cells(bits, cost, edges, one)) for name, bits, cost in rows]
        lines = [text_table([_columns(edges, unit), *cells], "><>")]
        lines.append(
            f"all bit-widths in one file: {self.file_bytes / one:.3f} {unit}; "
            f"float model: {self.float_bytes / one:.3f} {unit} (1 {unit} = {power} bytes)"
        )
        if self.file_bytes != self.total_bytes:
            lines.append(
                f"all bit-widths in hardware: {self.total_bytes / one:.3f} {unit}; "
                "the file has 8-bit weights in fp32"
            )
        if self.weights is not None:
            lines.append(f"weights in the file: {self.weights}")
        return "\n".join(lines)


def _columns(edges: bool, unit: str) -> tuple[str, ...]:
    edge = ("8-bit MMACs",) if edges else ()
    return ("bits", "branches", "MMACs", *edge, "float MMACs", "GBitOPs", unit)


def _cells(bits: int, cost: BitWidthCost, edges: bool, one: float) -> tuple[str, ...]:
    """Of all columns but the name."""
    return (
        ",".join(map(str, uses_at({bits: cost.branches}, bits))),
        f"{cost.macs / 1e6:.1f}",
        *((f"{cost.edge_macs / 1e6:.1f}",) if edges else ()),
        f"{cost.float_macs / 1e6:.1f}",
        f"{cost.bitops / 1e9:.2f}",
        f"{cost.bytes / one:.3f}",
    )


COUNTED = "counted"
CostModel = Callable[..., Any]
_MODELS: dict[str, CostModel] = {}


def register_cost_model(name: str) -> Callable[[CostModel], CostModel]:
    """Register what ``cost(net, model=name)`` calls: with network, shape, assignments, options.

    Args:
        name: of the model.
    """

    def register(model: CostModel) -> CostModel:
        _MODELS[name] = model
        return model

    return register


@overload
def cost(  # noqa: D418
    net: MultiQuantNet,
    input_shape: tuple[int, ...] | None = None,
    convention: str = "quantized",
    *,
    assignments: Sequence[Assignment] = (),
    model: Literal["counted"] = "counted",
) -> Cost:
    """What is counted."""


@overload
def cost(  # noqa: D418
    net: MultiQuantNet,
    input_shape: tuple[int, ...] | None = None,
    convention: str = "quantized",
    *,
    assignments: Sequence[Assignment] = (),
    model: str,
    **options: Any,
) -> Any:
    """What another model gives."""


def cost(
    net: MultiQuantNet,
    input_shape: tuple[int, ...] | None = None,
    convention: str = "quantized",
    *,
    assignments: Sequence[Assignment] = (),
    model: str = COUNTED,
    **options: Any,
) -> Any:
    """MACs, BitOPs, bytes and branches of every bit-width, and of assignments.

    Bytes follow the paper's storage rule: 2 bits a body weight; fp32 stem and head; two floats a
    channel for each norm, bit-width and branch; two floats for each range. With the profile
    ``finn`` stem and head have 8-bit weights, a byte each, and one float per layer, their scale.
    Where weights follow the bit-width, a bit-width alone has its own bits for each of them, and all
    of them together the largest one's integers, or floats where the smaller ones are not in those.

    What is no convolution or linear layer is in no MACs: additions, norms, activation functions,
    pooling, and fixed filters such as blur pooling, float wherever they stand. The numbers of such
    a filter are in the bytes where they are in the state dict, and so in the file.

    Args:
        net: the network; not changed, not even for a moment.
        input_shape: (N, C, H, W); default: the shape it was built with. Counts are per image.
        convention: what counts as bit operations: ``"quantized"`` layers alone, or as
            ``"fracbits"`` counts, with first layer and classifier (`cost.models.CONVENTIONS`).
        assignments: bits for each site: rows of the table besides.
        model: ``"counted"``; or ``"finn"``: LUTs, block RAMs and DSPs of each layer on an FPGA, by
            FINN's rules (`brevitas_multiquant.export.finn.layer_costs.hardware_costs`).
        **options: of that model, such as ``target_fps`` and ``board``.

    Raises:
        NetworkError: not a `MultiQuantNet`.
        BitWidthError: an assignment that does not fit the network.
        ConfigError: images of that shape do not pass the network, an unknown convention or model,
            or options that the model does not have.

    Example:
        >>> from torchvision.models import resnet18
        >>> from brevitas_multiquant import multiquantize
        >>> costs = cost(multiquantize(resnet18(), [2, 4], input_shape=(1, 3, 64, 64)))
        >>> costs[4].macs == 2 * costs[2].macs, costs[4].bitops == 4 * costs[2].bitops
        (True, True)
    """
    if model != COUNTED:
        check_choice("model", model, (COUNTED, *_MODELS))
        return _MODELS[model](net, input_shape, assignments, **options)
    if options:
        raise ConfigError(
            f"cost: expected no options of hardware with model={COUNTED!r}, got {list(options)}: "
            "pass model='finn'"
        )
    net = given_network(net, "cost")
    for one in assignments:
        net._checked("cost", one)
    measured = inventory_of(net, input_shape or net.input_shape or (1, 3, 224, 224))

    def at(setting: Setting) -> BitWidthCost:
        layers, bits = measured.at(setting), network_bits(setting)
        return BitWidthCost(
            macs=sum(x.macs for x in layers if not x.is_float and x.part == BRANCH),
            float_macs=sum(x.macs for x in layers if x.is_float),
            bitops=total_bitops(layers, partial(Layer.bits_at, setting=setting), convention),
            bytes=_bytes_alone(net.view(setting), bits),
            branches=net.selection[bits],
            edge_macs=sum(x.macs for x in layers if not x.is_float and x.part != BRANCH),
        )

    costs, mixed = {bits: at(bits) for bits in net.bits}, {one: at(one) for one in assignments}
    entries = [entry for part in parts_of(net) for entry in entries_of(*part)]
    total, in_file = (sum(one) for one in zip(*map(_sizes, entries), strict=True))
    two_bits = all(entry.coding is None or entry.coding.is_format for entry in entries)
    kept = None if two_bits else weights_in_words(net)
    return Cost(costs, total, _float_bytes(net), in_file, mixed, kept)


def _sizes(entry: Entry) -> tuple[int, int]:
    """In hardware, and in a file, whose header comes on top."""
    return entry.deployed_bytes, entry.bytes


def _bytes_alone(net: MultiQuantNet, bits: int) -> int:
    """Storage of the bit-width at which a network runs, if it never leaves it.

    What a half branch borrows counts where the whole one does not run.
    """
    running = {id(module): module for module in _running(net, bits)}
    entries = (entry for module in running.values() for entry in answers_of(module).stored(""))
    return sum(entry.bytes_alone for entry in entries if id(entry.owner) not in running)


def _running(net: MultiQuantNet, bits: int) -> Iterator[nn.Module]:
    """Every module that runs at a bit-width."""
    for part in (net.stem, *net.branches_at(bits), net.merge, net.head):
        yield from running_modules(part, bits)


def _float_bytes(net: MultiQuantNet) -> int:
    """fp32 storage of the float model: stem, head and one branch with one norm a place."""
    bits, first = next(
        (bits, branch)
        for bits in net.bits
        for branch in net.branches_at(bits)
        if branch is net.branches[0]
    )
    parts = (net.stem, first, net.head)
    modules = {id(m): m for part in parts for m in running_modules(part, bits)}
    return sum(map(_bytes_of_float, modules.values()))


def _bytes_of_float(module: nn.Module) -> int:
    """fp32 storage of what a module was made from: it had weights, not codes, and no range."""
    answers = answers_of(module)
    if WEIGHT in answers.sites():
        return FLOAT_BYTES * sum(p.numel() for p in module.parameters(recurse=False))
    return sum(entry.bytes for entry in answers.stored("") if entry.kind != "ranges")
