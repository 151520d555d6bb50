"""LUTs, block RAMs and DSPs of each layer of a network: what ``cost(net, model="finn")`` gives."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from brevitas_multiquant.core.precision import Assignment, Setting, name_of
from brevitas_multiquant.core.text_table import text_table
from brevitas_multiquant.cost import luts
from brevitas_multiquant.cost.luts import Resources
from brevitas_multiquant.cost.table import register_cost_model
from brevitas_multiquant.errors import ExportError
from brevitas_multiquant.export.finn.check import branch_names
from brevitas_multiquant.export.finn.hardware import named_layers
from brevitas_multiquant.export.finn.integer_graph import IntegerGraph
from brevitas_multiquant.export.finn.lower import lower
from brevitas_multiquant.export.finn.target import Target, make_target
from brevitas_multiquant.export.request import requested_settings, requested_shape
from brevitas_multiquant.nn.given import float32_network
from brevitas_multiquant.nn.subnet import extract_subnet

COLUMNS = ("LUT", "corrected", "BRAM18", "DSP", "URAM")


@dataclass(frozen=True)
class HardwareCost:
    """What each layer takes at one bit-width or assignment, by FINN's rules; prints as a table.

    Args:
        layers: module path -> resources, in the order in which they run; a convolution with its
            padding and window, a quantizer's table by itself.
        uncounted: module path -> LUTs beside them, which FINN's estimate leaves out
            (`brevitas_multiquant.cost.luts.uncounted_luts`).
        board: what it was folded for.
        fps: frames a second.
    """

    layers: Mapping[str, Resources]
    uncounted: Mapping[str, int]
    board: str
    fps: int

    @property
    def total(self) -> Resources:
        """All layers together."""
        return Resources.sum(self.layers.values())

    @property
    def corrected_luts(self) -> int:
        """LUTs of all layers, with what FINN's estimate leaves out."""
        return self.total.luts + sum(self.uncounted.values())

    def __str__(self) -> str:
        whole, corrected = self.total, self.corrected_luts
        rows = [
            *((name, one, one.luts + self.uncounted[name]) for name, one in self.layers.items()),
            ("total", whole, corrected),
        ]
        cells = [
            (name, *_cells(one, luts), f"{luts / max(corrected, 1):.1%}")
            for name, one, luts in rows
        ]
        table = text_table([("layer", *COLUMNS, "share"), *cells])
        return f"{table}\n{self.board}, {self.fps} frames a second"


def _cells(one: Resources, corrected: int) -> tuple[int, ...]:
    return (one.luts, corrected, *(getattr(one, name) for name in ("bram18", "dsp", "uram")))


class HardwareCosts(dict[Setting, HardwareCost]):
    """Bit-width or assignment -> what it takes on an FPGA; prints the totals as a table."""

    def __str__(self) -> str:
        rows = [
            (name_of(setting), *_cells(one.total, one.corrected_luts))
            for setting, one in self.items()
        ]
        return text_table([("bits", *COLUMNS), *rows])


@register_cost_model("finn")
def hardware_costs(
    net: Any,
    input_shape: tuple[int, ...] | None = None,
    assignments: Sequence[Assignment] = (),
    *,
    target_fps: int | None = None,
    board: str | None = None,
    part: str | None = None,
    clock_ns: float = 5.0,
    memory: str = "finn",
) -> HardwareCosts:
    """LUTs, block RAMs, DSPs and UltraRAMs of each layer, as FINN estimates them, without FINN.

    Beside FINN's LUTs stand corrected ones, with what FINN's estimate leaves out.

    Args:
        net: of the profile ``"finn"``, calibrated; not changed.
        input_shape: (N, C, H, W); default: the shape it was built with.
        assignments: bits for each site, beside the network's bit-widths.
        target_fps: frames a second that the layers are folded for.
        board: FINN's name of it; default: ZCU104.
        part: number of a chip, for boards that FINN does not know.
        clock_ns: clock period, in nanoseconds.
        memory: ``"finn"`` or ``"auto"``, as in `brevitas_multiquant.export.export_finn`.

    Raises:
        NetworkError, PrecisionError: not a `MultiQuantNet`, or one that is not in fp32.
        BitWidthError: an assignment that does not fit the network.
        CalibrationError: ranges that have seen no data.
        FinnMappingError: the network does not map; lists every reason.
        ExportError: no frames a second, or a board, part or clock that cannot be.

    Example:
        >>> import timm, torch
        >>> import brevitas_multiquant.core.cifar_networks
        >>> from brevitas_multiquant import calibrate, cost, multiquantize
        >>> model = timm.create_model("cifar_resnet8", num_classes=10)
        >>> net = multiquantize(model, [2], profile="finn", input_shape=(1, 3, 16, 16))
        >>> calibrate(net, [torch.rand(4, 3, 16, 16)])
        >>> found = cost(net, model="finn", target_fps=1000, board="ZCU104")
        >>> found[2].total.luts > 2000, found[2].layers["stem.conv1"].dsp > 0
        (True, True)
    """
    net = float32_network(net, "cost")
    if target_fps is None:
        raise ExportError(
            "target_fps: expected frames a second for model='finn', got none: how many LUTs a "
            "layer takes depends on how parallel it has to be"
        )
    target = make_target(board, part, target_fps, clock_ns, memory)
    shape = requested_shape(net, input_shape)
    found = HardwareCosts()
    for given, setting in requested_settings(net, None, assignments).items():
        subnet = extract_subnet(net, setting).cpu()
        found[given] = _by_layer(lower(subnet, branch_names(net, subnet.bits), shape), target)
    return found


def _by_layer(graph: IntegerGraph, target: Target) -> HardwareCost:
    names, _ = zip(*named_layers(graph), strict=True)
    where = {graph.input.name: "image"}
    where |= {layer.output.name: layer.where for layer in graph.layers}
    found: dict[str, Resources] = {}
    uncounted: Counter[str] = Counter()
    dsp = target.board.dsp
    for name, node in zip(names, target.layers(graph), strict=True):
        place = where[name]
        found[place] = found.get(place, Resources()) + luts.resources(node, dsp)
        uncounted[place] += luts.uncounted_luts(node, dsp)
    return HardwareCost(found, uncounted, target.board.name, target.fps)
