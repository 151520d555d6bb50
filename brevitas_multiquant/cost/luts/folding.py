"""How parallel FINN makes each layer for a frame rate.

Follows ``SetFolding`` of finn-plus 1.6.1: each layer alone takes the least parallelism, among the
divisors of what it runs over, that keeps it within the cycles of a frame. If one layer cannot, the
others are folded again for what that one manages.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from brevitas_multiquant.cost.luts.cycles import cycles
from brevitas_multiquant.cost.luts.nodes import (
    Concatenation,
    DepthwiseProduct,
    MatrixProduct,
    Node,
    Pool,
    Window,
)
from brevitas_multiquant.cost.luts.products import DspBlock, multiplies_in_dsps
from brevitas_multiquant.errors import HardwareError

WIDEST_WEIGHTS = 36
"""Bits of weights that one output reads at once, where the frame rate can do with fewer."""
WIDEST_STREAM = 8191
"""Bits of one stream in HLS; RTL has no limit."""


def target_cycles(fps: float, clock_ns: float = 5.0) -> int:
    """Cycles of one frame.

    Args:
        fps: frames a second.
        clock_ns: clock period, in nanoseconds.

    Raises:
        HardwareError: one of them is not positive, or a frame has less than a cycle.

    Example:
        >>> target_cycles(1000)
        200000
    """
    if not (fps > 0 and clock_ns > 0):
        raise HardwareError(
            f"target_fps and clock_ns: expected positive numbers, got {fps} and {clock_ns}"
        )
    found = int(10**9 / clock_ns / fps)
    if found < 1:
        raise HardwareError(
            f"target_fps: expected at least a cycle a frame, got {fps} at {clock_ns} ns"
        )
    return found


def fold(nodes: Sequence[Node], target: int, dsp: DspBlock = "DSP48E2") -> tuple[Node, ...]:
    """The layers of a network with the parallelism that FINN picks.

    Args:
        nodes: layers; a depthwise `Window` stands right in front of what reads it.
        target: cycles a frame, of `target_cycles`.
        dsp: the board's kind of DSP.

    Raises:
        HardwareError: a depthwise window that no depthwise product or pool follows, or less than
            one cycle.

    Example:
        >>> fold([MatrixProduct(144, 16, 1024, 3, 3, 12)], 200000)[0].simd
        12
    """
    if target < 1:
        raise HardwareError(f"target: expected one cycle a frame or more, got {target}")
    folded = _fold_each(nodes, target, dsp)
    slowest = max((cycles(node) for node in folded), default=0)
    return _fold_each(folded, slowest, dsp) if slowest > target else folded


def unfolded(node: Node) -> Node:
    """The layer with the least parallelism.

    Example:
        >>> from brevitas_multiquant.cost.luts import Addition
        >>> unfolded(Addition(16, 1024, pe=4))
        Addition(channels=16, positions=1024, pe=1)
    """
    least = {"pe": 1, "simd": 1, "parallel": False}
    return replace(node, **{name: one for name, one in least.items() if hasattr(node, name)})


def _fold_each(nodes: Sequence[Node], target: int, dsp: DspBlock) -> tuple[Node, ...]:
    folded: list[Node] = []
    for window, node in _with_windows(nodes):
        node = _fold_alone(node, target, dsp)
        folded += [node] if window is None else _fold_with_window(window, node, target)
    return tuple(folded)


def _with_windows(nodes: Sequence[Node]) -> Iterator[tuple[Window | None, Node]]:
    """Each layer, with the depthwise window in front of it."""
    window = None
    for node in nodes:
        if window is not None and not isinstance(node, (DepthwiseProduct, Pool)):
            break
        if isinstance(node, Window) and node.depthwise:
            window = node
        else:
            yield window, node
            window = None
    if window is not None:
        raise HardwareError(
            f"fold: expected a DepthwiseProduct or a Pool right behind the depthwise {window}"
        )


def _fold_alone(node: Node, target: int, dsp: DspBlock) -> Node:
    if isinstance(node, MatrixProduct):
        return _fold_matrix_product(node, target, dsp)
    if isinstance(node, DepthwiseProduct):
        return _fold_depthwise_product(node, target)
    if isinstance(node, Window):
        return _fold_window(node, target)
    if isinstance(node, Concatenation):  # FINN asks for less than the target here
        return _least(node, "pe", node.common, target - 1)
    return _least(node, "pe", node.channels, target) if hasattr(node, "channels") else node


def divisors(number: int) -> list[int]:
    """All of them, ascending.

    Example:
        >>> divisors(12)
        [1, 2, 3, 4, 6, 12]
    """
    return [value for value in range(1, number + 1) if number % value == 0]


def _least(node: Any, name: str, most: int, target: int) -> Any:
    """The least parallelism within the target, else the most."""
    made = (replace(node, **{name: value}) for value in divisors(most))
    return next((one for one in made if cycles(one) <= target), replace(node, **{name: most}))


def _fold_matrix_product(node: MatrixProduct, target: int, dsp: DspBlock) -> MatrixProduct:
    """Inputs first, as long as the weights of one output are no wider than a memory; then outputs.

    A wider one is taken if it meets the target: FINN looks at the cycles before the width.
    """
    node = replace(node, pe=1, simd=1)
    node = _widen(
        node,
        "simd",
        divisors(node.inputs),
        target,
        lambda wider: wider.simd * wider.weight_bits > WIDEST_WEIGHTS and cycles(wider) > target,
    )
    limited = node.mem_mode == "internal_decoupled" and not multiplies_in_dsps(node, dsp)
    return _widen(
        node,
        "pe",
        divisors(node.outputs),
        target,
        lambda wider: limited and wider.pe * wider.simd * wider.weight_bits > WIDEST_STREAM,
    )


def _widen(
    node: Any,
    name: str,
    values: Sequence[int],
    target: int,
    too_wide: Callable[[MatrixProduct], bool],
) -> Any:
    for value in values:
        wider = replace(node, **{name: value})
        if too_wide(wider):
            break
        node = wider
        if cycles(node) <= target:
            break
    return node


def _fold_window(node: Window, target: int) -> Window:
    """Channels first, then whole windows."""
    node = _least(replace(node, parallel=False), "simd", node.channels, target)
    return replace(node, parallel=cycles(node) > target)


def _fold_depthwise_product(node: DepthwiseProduct, target: int) -> DepthwiseProduct:
    """Channels first, then positions of the kernel."""
    node = _least(replace(node, pe=1, simd=1), "pe", node.channels, target)
    return _least(node, "simd", node.fan_in, target) if cycles(node) > target else node


def _fold_with_window(window: Window, node: Any, target: int) -> list[Node]:
    """Both get the parallelism that the slower one of the two needs."""
    enough = [value for value in divisors(node.channels) if value >= node.pe]
    made = (replace(window, simd=value) for value in enough)
    last = replace(window, simd=node.channels)
    window = next((one for one in made if cycles(one) <= target), last)
    parallel = isinstance(node, DepthwiseProduct) and node.simd > 1
    return [replace(window, parallel=parallel), replace(node, pe=window.simd)]
