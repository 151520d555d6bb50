"""What FINN's estimate leaves out of products, by an open synthesis of its SystemVerilog.

Where DSPs multiply, FINN counts DSPs and the memory of weights alone. Around them are a replay
buffer, adders behind the DSPs, and a queue. Weights of all products come through a streamer that is
not counted either. ``benchmarks/finn_synthesis_products.py`` had yosys count the cells; no vendor
tool, no placement. What FINN builds in Vitis HLS was not synthesised: its rule stands.
"""

from collections.abc import Sequence
from math import ceil, log2

from brevitas_multiquant.cost.luts.nodes import DepthwiseProduct, MatrixProduct
from brevitas_multiquant.cost.luts.products import (
    DATAPATHS,
    DspBlock,
    in_dsps,
    uncounted_weight_luts,
)

Product = MatrixProduct | DepthwiseProduct
STREAMER, WRAP = 13, 4
"""LUTs of a streamer's handshake and counters, and of a counter that has to be set back."""
CONTROL = 10
"""LUTs of a product's handshake."""
CANARY = 5
"""LUTs for each product that shares a DSP with a higher one: whether it spilled over."""


def product_logic(product: Product, dsp: DspBlock = "DSP48E2") -> int:
    """LUTs of a product that FINN's estimate has not.

    Of all products the streamer of the weights; of those in DSPs also what stands around them, and
    weights that are in LUTs.

    The source is ``benchmarks/results/finn_synthesis_products.csv``: yosys 0.70, UltraScale+,
    FINN's SystemVerilog of finn-plus 1.6.1.

    Args:
        product: the layer, with its parallelism.
        dsp: the board's kind of DSP.

    Example:
        >>> product_logic(MatrixProduct(144, 16, 1024, 8, 8, 22, pe=4, simd=4))
        671
    """
    logic = streamer_logic(product) + uncounted_weight_luts(product, dsp)
    return logic + logic_around_dsps(product, dsp) if in_dsps(product, dsp) else logic


def streamer_logic(product: Product) -> int:
    """LUTs that stream the weights: a queue as wide as a word of whole bytes, and counters.

    Args:
        product: the layer, with its parallelism.
    """
    if product.mem_mode != "internal_decoupled":
        return 0
    width = product.pe * product.simd * product.weight_bits
    words = product.weight_words
    wraps = words & (words - 1) != 0  # a counter of a power of two does so by itself
    return 8 * ceil(width / 8) + STREAMER + WRAP * wraps


def logic_around_dsps(product: Product, dsp: DspBlock) -> int:
    """LUTs of a product's replay buffer, of adders behind its DSPs, and of its queue."""
    folds = product.fan_in // product.simd
    queue = product.pe * product.accumulator_bits
    logic = queue + CONTROL
    if isinstance(product, MatrixProduct) and product.pe < product.outputs:
        logic += 4 * _bits(folds) + _bits(product.outputs // product.pe)
        logic += replay_memory(product.simd * product.activation_bits, folds)
    if isinstance(product, DepthwiseProduct) or _cascades(product, dsp):
        return logic
    lanes = lane_bits(product, dsp)
    for first in range(0, product.pe, len(lanes)):
        taken = min(len(lanes), product.pe - first)
        logic += _pipe(product, lanes, taken)
    return logic


def replay_memory(bits: int, depth: int) -> int:
    """LUTs of a memory with a port to write and one to read: 14 bits of 32 words, 7 of 64."""
    if depth <= 32:
        return 8 * ceil(bits / 14)
    blocks = 2 ** _bits(depth) // 64
    return 8 * ceil(bits / 7) * blocks + bits * ceil((blocks - 1) / 3)


def lane_bits(product: MatrixProduct, dsp: DspBlock) -> tuple[int, ...]:
    """Bits of each output that shares a DSP, the rightmost first; follows ``mvu.sv``."""
    _, width, sums = DATAPATHS[dsp]
    least = product.weight_bits + product.activation_bits - 1
    spare = width - (not product.narrow) - product.weight_bits
    lanes = 1 if width == product.weight_bits else 1 + spare // least
    spare -= (lanes - 1) * least
    found: list[int] = []
    for left in range(lanes - 1, 0, -1):
        extra = ceil(spare / left)
        found.append(least + extra)
        spare -= extra
    return (*found, min(product.accumulator_bits, sums - sum(found)))


def _cascades(product: MatrixProduct, dsp: DspBlock) -> bool:
    """Whether DSPs add up what they multiply along a chain, as a DSP58 does for 8 bits."""
    small = product.weight_bits <= 8 and product.activation_bits <= 9
    return dsp == "DSP58" and small and len(lane_bits(product, dsp)) <= 3


def _pipe(product: MatrixProduct, lanes: Sequence[int], taken: int) -> int:
    """LUTs behind the DSPs of a group of outputs, which take the leftmost lanes."""
    simd, total = product.simd, 0
    below = 0  # bits of what the lane to the right spilled
    for place in range(len(lanes) - taken, len(lanes)):
        low = lanes[place]
        high = _spill_bits(lanes, place, product)
        total += _adders(simd, low)
        spills = high > 0
        if spills:
            total += _adders(simd, 2) + high + CANARY * simd * (place < len(lanes) - 1)
        if below:
            total += product.accumulator_bits
        elif spills:
            total += max(product.accumulator_bits - low, 0)
        below = high
    return total


def _spill_bits(lanes: Sequence[int], place: int, product: MatrixProduct) -> int:
    """Bits of what is more than a lane holds; follows ``hi_width`` of ``mvu.sv``."""
    sums, simd = product.accumulator_bits, product.simd
    if sums <= lanes[place]:
        return 0 if place == len(lanes) - 1 else 1 + ceil(log2(simd))
    more = sums - lanes[place]
    if ceil(log2(simd)) < more - 1:
        return 1 + more
    reach, spilled = 0, 0
    for lane in reversed(lanes[: place + 1]):
        reach += lane
        spilled += 2 ** max(sums - reach - 1, 0)
    return 1 + ceil(log2(spilled + simd))


def _adders(count: int, bits: int) -> int:
    """LUTs of a tree of adders: of each, as many as its wider operand has bits."""
    if count < 2:
        return 0
    nodes = [1] * (2 * count - 1)
    total = 0
    for node in range(count - 2, -1, -1):
        children = nodes[2 * node + 1], nodes[2 * node + 2]
        nodes[node] = sum(children)
        total += bits + ceil(log2(max(children)))
    return total


def _bits(count: int) -> int:
    return ceil(log2(count)) if count > 1 else 1
