"""What an accelerator is built for: a board, frames a second, a clock, and where memories go."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from brevitas_multiquant.cost import luts
from brevitas_multiquant.cost.luts import Board, Node, Resources
from brevitas_multiquant.errors import ExportError, HardwareError
from brevitas_multiquant.export.finn.hardware import named_layers
from brevitas_multiquant.export.finn.integer_graph import IntegerGraph

DEFAULT_BOARD = "ZCU104"
SHARE_OF_BRAM = 0.8
"""Of a board's block RAMs ``memory="auto"`` takes no more; FIFOs and the shell need some."""


def _as_finn(layers: Sequence[Node], board: Board) -> tuple[Node, ...]:
    return tuple(layers)


def _fewest_luts(layers: Sequence[Node], board: Board) -> tuple[Node, ...]:
    return luts.fewest_luts(layers, int(SHARE_OF_BRAM * board.has.bram18), board.dsp)


MEMORIES: dict[str, Callable[[Sequence[Node], Board], tuple[Node, ...]]] = {
    "finn": _as_finn,
    "auto": _fewest_luts,
}
"""What decides which memory each table, weight and line goes to."""


@dataclass(frozen=True)
class Target:
    """A board, frames a second, a clock, and where memories go.

    Args:
        board: what there is.
        fps: frames a second that layers are folded for.
        clock_ns: clock period, in nanoseconds.
        by_part: whether FINN knows the chip alone, and no board around it.
        memory: of `MEMORIES`.
        writable: whether threshold tables can be written at run time.
    """

    board: Board
    fps: int
    clock_ns: float = 5.0
    by_part: bool = False
    memory: str = "finn"
    writable: bool = False

    def layers(self, graph: IntegerGraph) -> tuple[Node, ...]:
        """The layers of hardware that FINN makes of an integer network for this target."""
        folded = self._folded([node for _, node in named_layers(graph, self.writable)])
        return MEMORIES[self.memory](folded, self.board)

    def _folded(self, layers: Sequence[Node]) -> tuple[Node, ...]:
        cycles = luts.target_cycles(self.fps, self.clock_ns)
        return luts.fold(layers, cycles, self.board.dsp)

    def resources(self, graph: IntegerGraph) -> Resources:
        """What FINN would estimate for an integer network."""
        return luts.total(self.layers(graph), self.board.dsp)

    def needs(self, graph: IntegerGraph) -> Resources:
        """The same with the LUTs that FINN's estimate leaves out: what a board has to have."""
        return self.needs_of(self.layers(graph))

    def needs_of(self, layers: Sequence[Node]) -> Resources:
        """As `needs`, of layers of this target."""
        corrected = luts.corrected_luts(layers, self.board.dsp, self.writable)
        return replace(luts.total(layers, self.board.dsp), luts=corrected)

    def memory_config(self, graph: IntegerGraph) -> dict[str, dict[str, dict[str, Any]]]:
        """Stream -> kind of FINN's layer -> attributes, where they are not FINN's own.

        A stream's name is what FINN keeps: in the constants of its weights and thresholds.
        """
        names, layers = zip(*named_layers(graph, self.writable), strict=True)
        found: dict[str, dict[str, dict[str, Any]]] = {}
        folded = self._folded(layers)
        placed = MEMORIES[self.memory](folded, self.board)
        for name, before, after in zip(names, folded, placed, strict=True):
            if before != after:
                kind, attributes = _ATTRIBUTES[type(after)]
                values = {one: getattr(after, field) for one, field in attributes.items()}
                found.setdefault(name, {})[kind] = values
        return found


_ATTRIBUTES: dict[type[Node], tuple[str, dict[str, str]]] = {
    luts.Thresholds: (
        "Thresholding",
        {"depth_trigger_bram": "bram_from", "depth_trigger_uram": "uram_from"},
    ),
    luts.Window: ("ConvolutionInputGenerator", {"ram_style": "ram_style"}),
    luts.MatrixProduct: ("MVAU", {"ram_style": "ram_style"}),
    luts.DepthwiseProduct: ("VVAU", {"ram_style": "ram_style"}),
}
"""Layer -> what FINN calls it, and FINN's attribute -> ours."""


def find_board(board: str | None, part: str | None) -> Board:
    """A board by its name, or a chip by its part number; without both `DEFAULT_BOARD`.

    Raises:
        ExportError: both are given, or neither FINN nor this package knows it.
    """
    if board is not None and part is not None:
        raise ExportError(f"board and part: expected one of them, got {board!r} and {part!r}")
    try:
        if part is not None:
            return luts.board_of_part(part)
        return luts.board_named(DEFAULT_BOARD if board is None else board)
    except HardwareError as error:
        raise ExportError(str(error)) from error


def make_target(
    board: str | None,
    part: str | None,
    fps: int,
    clock_ns: float,
    memory: str = "finn",
    writable: bool = False,
) -> Target:
    """A target of checked values.

    Raises:
        ExportError: one of them cannot be.
    """
    if isinstance(fps, bool) or not isinstance(fps, int) or fps < 1:
        raise ExportError(f"target_fps: expected a positive whole number, got {fps!r}")
    if memory not in MEMORIES:
        raise ExportError(f"memory: expected one of {list(MEMORIES)}, got {memory!r}")
    found = find_board(board, part)
    try:
        luts.target_cycles(fps, clock_ns)
    except (HardwareError, TypeError) as error:
        raise ExportError(f"target_fps and clock_ns: {error}") from error
    return Target(found, fps, clock_ns, part is not None, memory, writable)
