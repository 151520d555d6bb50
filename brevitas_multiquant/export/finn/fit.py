"""Which bit-widths fit on which board, by the estimates of `brevitas_multiquant.cost.luts`."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from brevitas_multiquant.core.precision import (
    Assignment,
    Setting,
    described,
    key_of,
    network_bits,
)
from brevitas_multiquant.core.text_table import text_table
from brevitas_multiquant.cost import luts
from brevitas_multiquant.cost.luts import Node, Resources
from brevitas_multiquant.errors import BoardError, ExportError
from brevitas_multiquant.export.finn.check import branch_names
from brevitas_multiquant.export.finn.lower import lower
from brevitas_multiquant.export.finn.switchable import with_gates
from brevitas_multiquant.export.finn.target import DEFAULT_BOARD, Target, make_target
from brevitas_multiquant.export.request import requested_settings, requested_shape
from brevitas_multiquant.nn.given import float32_network
from brevitas_multiquant.nn.network import MultiQuantNet
from brevitas_multiquant.nn.subnet import extract_subnet

UNITS = {"luts": "LUTs", "bram18": "block RAMs (18K)", "dsp": "DSPs", "uram": "UltraRAMs"}
"""Resource -> what messages call it."""


def require_fit(layers: Mapping[Setting, Sequence[Node]], target: Target) -> None:
    """Refuse networks that need more than the board has.

    Args:
        layers: bit-width or assignment -> layers of hardware, folded.
        target: the board.

    Raises:
        BoardError: naming each bit-width, what it needs, and what the board has.
    """
    needs = {setting: target.needs_of(each) for setting, each in layers.items()}
    estimates = {setting: luts.total(each, target.board.dsp) for setting, each in layers.items()}
    has = target.board.has
    lines = [
        f"\n  - {described(setting)}: needs {_rounded(getattr(need, name))} {UNITS[name]}, "
        f"{target.board.name} has {_rounded(getattr(has, name))}"
        + (f" (FINN's estimate: {_rounded(estimates[setting].luts)})" if name == "luts" else "")
        for setting, need in needs.items()
        for name in need.exceeded(has)
    ]
    if lines:
        raise BoardError(
            f"export_finn for {target.fps} frames a second on {target.board.name}: expected a "
            f"network that fits, by FINN's rules of estimation and the LUTs that they leave out, "
            f"got:{''.join(lines)}\nTake memory="
            "'auto', a larger board, a lower target_fps or fewer bit-widths, or export all the "
            "same with must_fit=False",
            {setting: need for setting, need in needs.items() if need.exceeded(has)},
        )


def _rounded(count: int) -> str:
    return f"{count / 1000:.0f} thousand" if count >= 10_000 else f"{count:,}"


@dataclass(frozen=True)
class FitTable:
    """What each bit-width needs on each board; ``print`` it.

    Args:
        targets: a board each.
        needs: bit-width or assignment -> what it needs, a board each; LUTs with those that FINN's
            estimate leaves out (`brevitas_multiquant.cost.luts.uncounted_luts`). Of a switchable
            accelerator the largest bit-width alone.
        switchable: bit-widths of an accelerator that has all of them, if it is one.
    """

    targets: tuple[Target, ...]
    needs: dict[Setting, tuple[Resources, ...]]
    switchable: tuple[int, ...] = ()

    def fits(self, setting: Setting, board: str) -> bool:
        """Whether a bit-width or an assignment fits on a board.

        Args:
            setting: of the rows.
            board: name or part number, of the columns.
        """
        names = [target.board.name for target in self.targets]
        index = names.index(board)
        return not self.needs[setting][index].exceeded(self.targets[index].board.has)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON: bit-width or assignment -> board -> what is needed there."""
        names = [target.board.name for target in self.targets]
        return {
            key_of(setting): {
                name: {**asdict(need), "fits": self.fits(setting, name)}
                for name, need in zip(names, needs, strict=True)
            }
            for setting, needs in self.needs.items()
        }

    def __str__(self) -> str:
        head = ["bits", *(target.board.name for target in self.targets)]
        one_for_all = f"one for {', '.join(map(str, self.switchable))}"
        rows = [
            [one_for_all if self.switchable else str(bits), *map(_cell, needs, self.targets)]
            for bits, needs in self.needs.items()
        ]
        return text_table([head, *rows], "<")


def _cell(need: Resources, target: Target) -> str:
    """The scarcest resource, and whether there is enough of it."""
    has = target.board.has
    shares = {
        name: getattr(need, name) / getattr(has, name) if getattr(has, name) else float("inf")
        for name in UNITS
        if getattr(need, name)
    }
    name = max(shares, key=lambda one: shares[one])
    short = {"luts": "LUT", "bram18": "BRAM", "dsp": "DSP", "uram": "URAM"}[name]
    if shares[name] > 1:
        return f"no: {shares[name]:.2f} x {short}"
    return f"{need.luts / 1000:.1f}k LUT, {shares[name]:.0%} of {short}"


def fit_table(
    net: MultiQuantNet,
    boards: Sequence[str] = (DEFAULT_BOARD,),
    parts: Sequence[str] = (),
    bits: Sequence[int] | None = None,
    *,
    target_fps: int = 1000,
    clock_ns: float = 5.0,
    memory: str = "finn",
    assignments: Sequence[Assignment] = (),
    switchable: bool = False,
) -> FitTable:
    """Which bit-widths of a network fit on which boards, without FINN and before any export.

    The estimates are those of FINN, layer by layer, for the weights and tables that the network
    has, and the LUTs that FINN leaves out of them; a network that has seen no data is given noise
    first by whoever asks.

    Args:
        net: of the profile ``"finn"``, calibrated; not changed.
        boards: names that FINN knows.
        parts: part numbers of chips, for boards that FINN does not know.
        bits: which bit-widths; default: all of ``net.bits``.
        target_fps: frames a second that the layers are folded for.
        clock_ns: clock period, in nanoseconds.
        memory: ``"finn"`` or ``"auto"``, as in `export_finn`.
        assignments: bits for each site, beside the bit-widths.
        switchable: the one accelerator for all of them, as `export_finn` makes it: a row of the
            largest bit-width, with gates for half branches and ports to write its tables.

    Raises:
        NetworkError, PrecisionError: not a `MultiQuantNet`, or one that is not in fp32.
        BitWidthError: not candidates of the network, or an assignment that does not fit it.
        CalibrationError: ranges that have seen no data.
        FinnMappingError: the network does not map; lists every reason.
        ExportError: an unknown board or part, none at all, or frames a second that cannot be.

    Example:
        >>> import timm, torch
        >>> import brevitas_multiquant.core.cifar_networks
        >>> from brevitas_multiquant import calibrate, multiquantize
        >>> model = timm.create_model("cifar_resnet8", num_classes=10)
        >>> net = multiquantize(model, [2, 4], profile="finn", input_shape=(1, 3, 16, 16))
        >>> calibrate(net, [torch.rand(4, 3, 16, 16)])
        >>> table = fit_table(net, ["ZCU104", "Pynq-Z1"], ["xc7z007sclg225-1"])
        >>> table.fits(2, "Pynq-Z1"), table.fits(4, "xc7z007sclg225-1")
        (True, False)
    """
    net = float32_network(net, "fit_table")
    more = (target_fps, clock_ns, memory, switchable)
    targets = (
        *(make_target(board, None, *more) for board in boards),
        *(make_target(None, part, *more) for part in parts),
    )
    if not targets:
        raise ExportError("boards and parts: expected at least one, got none")
    shape, largest = requested_shape(net, None), max(net.bits)
    chosen = requested_settings(net, bits, assignments)
    subnets = {given: extract_subnet(net, setting).cpu() for given, setting in chosen.items()}
    if switchable and largest not in subnets:
        subnets[largest] = extract_subnet(net, largest).cpu()
    graphs = {
        given: lower(subnet, branch_names(net, subnet.bits), shape)
        for given, subnet in subnets.items()
    }
    if switchable:
        graphs = {largest: with_gates(graphs, net.selection)[largest]}
    needs = {
        given: tuple(target.needs(graph) for target in targets) for given, graph in graphs.items()
    }
    ran = dict.fromkeys(network_bits(one) for one in chosen.values()) if switchable else ()
    return FitTable(targets, needs, tuple(ran))
