"""What FINN's estimate leaves out of threshold units and products, by an open synthesis.

Of a threshold unit FINN counts the tables alone. The binary search over them compares, and has a
queue behind it and counters around it. How many LUTs these take was counted with yosys, from FINN's
own SystemVerilog (``benchmarks/finn_synthesis.py``); no vendor tool, no placement. Of products
`brevitas_multiquant.cost.luts.product_synthesis` has the same.
"""

from collections.abc import Iterable
from math import ceil, log2

from brevitas_multiquant.cost.luts.nodes import DepthwiseProduct, MatrixProduct, Node, Thresholds
from brevitas_multiquant.cost.luts.product_synthesis import product_logic
from brevitas_multiquant.cost.luts.products import DspBlock
from brevitas_multiquant.cost.luts.rules import total
from brevitas_multiquant.errors import HardwareError

CONTROL = 17
"""LUTs of the handshake, the guard of the queue, its pointer and the channel counter."""
PORT = 17
"""LUTs of the handshake of an AXI-Lite port."""
STAGE_DECODING = 4
"""LUTs of a stage that tell whether a write or a read is for it."""


def comparator_luts(bits: int) -> int:
    """LUTs of a comparison of two signed integers: two LUTs take three bits of each.

    Args:
        bits: of each integer.

    Example:
        >>> comparator_luts(9), comparator_luts(10)
        (6, 7)
    """
    return ceil(2 * bits / 3)


def threshold_logic(node: Thresholds, writable: bool = False) -> int:
    """LUTs of a threshold unit beside its tables.

    In each stage of the search a comparator and one LUT of the queue behind it; `CONTROL` around
    them. A port to write the tables adds, for each stage, the way back of what is read and the
    decoding of `STAGE_DECODING`, for each bit of the address two LUTs, and `PORT`.

    The source is ``benchmarks/results/finn_synthesis.csv``: yosys 0.70, UltraScale+, FINN's
    SystemVerilog of finn-plus 1.6.1. Seen for 2 to 8 bits of output, thresholds of 5 to 19 bits,
    16 to 1024 channels and up to 16 of them at once, tables of 2^n - 1 thresholds, signed inputs
    as wide as the thresholds. No placement and no vendor tool: packing of two functions into a LUT
    is not in it. Found were 5 fewer to 9 more LUTs than this says.

    Args:
        node: the unit, with its parallelism.
        writable: whether its tables are written through an AXI-Lite port.

    Raises:
        HardwareError: another kind of layer.

    Example:
        >>> unit = Thresholds(channels=16, positions=1024, threshold_bits=12, output_bits=4)
        >>> total([unit]).luts, threshold_logic(unit), threshold_logic(unit, writable=True)
        (60, 53, 162)
    """
    if not isinstance(node, Thresholds):
        got = type(node).__name__
        raise HardwareError(f"threshold_logic: expected Thresholds, got {got}")
    bits, stages = node.threshold_bits, node.pe * node.output_bits
    fixed = stages * (comparator_luts(bits) + 1) + CONTROL
    return fixed + _port(node) if writable else fixed


def _port(node: Thresholds) -> int:
    stages = node.pe * node.output_bits
    read_back = node.threshold_bits * (stages + node.pe)
    address = node.output_bits + ceil(log2(node.pe)) + ceil(log2(node.channels // node.pe))
    return read_back + STAGE_DECODING * stages + 2 * address + PORT


def uncounted_luts(node: Node, dsp: DspBlock = "DSP48E2", writable: bool = False) -> int:
    """LUTs of a layer that FINN's estimate leaves out: those of thresholds and of products.

    Other layers are FINN's numbers as they are; `threshold_logic` and `product_logic` say what was
    seen and where.

    Args:
        node: the layer, with its parallelism.
        dsp: the board's kind of DSP.
        writable: whether tables are written through ports, as in a switchable accelerator.

    Example:
        >>> uncounted_luts(Thresholds(16, 1024, threshold_bits=12, output_bits=4))
        53
    """
    if isinstance(node, Thresholds):
        return threshold_logic(node, writable)
    if isinstance(node, (MatrixProduct, DepthwiseProduct)):
        return product_logic(node, dsp)
    return 0


def corrected_luts(nodes: Iterable[Node], dsp: DspBlock = "DSP48E2", writable: bool = False) -> int:
    """LUTs that FINN estimates, and those that it leaves out.

    Args:
        nodes: the layers, with their parallelism.
        dsp: the board's kind of DSP.
        writable: whether all tables are written through ports, as in a switchable accelerator.

    Example:
        >>> corrected_luts([Thresholds(16, 1024, threshold_bits=12, output_bits=4)])
        113
    """
    layers = list(nodes)
    uncounted = sum(uncounted_luts(node, dsp, writable) for node in layers)
    return total(layers, dsp).luts + uncounted
