"""Rules of everything between products: thresholds, windows, and what only passes numbers on."""

from math import ceil, lcm

from brevitas_multiquant.cost.luts.memory import bram18_for_lines, least_waste, uram
from brevitas_multiquant.cost.luts.nodes import Thresholds, WidthConverter, Window
from brevitas_multiquant.cost.luts.resources import Resources

SHIFT_REGISTER_WORDS = 38
"""Words of a line buffer that FINN counts as one LUT a bit."""


def thresholds(node: Thresholds) -> Resources:
    """Resources of threshold tables: one memory for each bit of the output.

    The memory of each further bit is twice as deep. Follows
    ``Thresholding_rtl.get_pe_mem_geometries`` and its ``_get_memory_estimate_details``.

    Args:
        node: the layer.

    Example:
        >>> thresholds(Thresholds(16, 1024, 14, 3)).luts
        42
    """
    found = Resources()
    for stage in range(node.output_bits):
        depth = node.channels // node.pe * 2**stage
        kind, count = least_waste(node.threshold_bits, depth, _table_kinds(node, depth))
        found += Resources(**{kind: node.pe * count})
    return found


def _table_kinds(node: Thresholds, depth: int) -> tuple[str, ...]:
    if node.bram_from == node.uram_from == 0:
        return ()
    if depth >= node.uram_from:
        # FINN looks at the smaller bound first, but only below the larger one
        return ("uram",)
    return ("bram18",) if depth >= node.bram_from else ()


def window(node: Window) -> Resources:
    """Resources of a window buffer: control, and the lines in LUTs or in memories.

    Follows ``lut_estimation``, ``bram_estimation`` and ``uram_estimation`` of
    ``ConvolutionInputGenerator_rtl``.

    Args:
        node: the layer.

    Example:
        >>> window(Window(3, (34, 34), (3, 3), 8)).luts
        348
    """
    width = node.simd * node.activation_bits
    control = Resources(luts=300)
    if node.ram_style == "distributed":
        return control + Resources(luts=width * ceil(buffer_words(node) / SHIFT_REGISTER_WORDS))
    buffers, depth = _memories(node)
    if node.ram_style == "ultra":
        return control + Resources(uram=buffers * uram(width, depth))
    return control + Resources(bram18=buffers * bram18_for_lines(width, depth))


def buffer_words(node: Window) -> int:
    """Words of a window's buffer.

    Follows ``ConvolutionInputGenerator_rtl.get_buffer_depth``: from the first to the last number of
    a window, and what a stride lets it read ahead.

    Args:
        node: the layer.

    Example:
        >>> buffer_words(Window(3, (34, 34), (3, 3), 8))
        213
    """
    folds, width = node.channels // node.simd, node.size[1]
    before = (node.extent[0] - 1) * width + node.extent[1] - 1
    if node.whole_windows:
        return before * folds + 2
    points = node.kernel[0] * node.kernel[1]
    ahead = [node.stride[1] - 1 - points, (node.stride[0] - 1) * width - points]
    return (before + 1 + sum(max(0, words) for words in ahead)) * folds


def _memories(node: Window) -> tuple[int, int]:
    """How many memories, and their words: one buffer, or one a line between the kernel's rows."""
    if not node.whole_windows:
        return 1, buffer_words(node)
    if 1 in node.size:
        return 0, 1
    width = node.size[1]
    return node.kernel[0] - 1, width - node.extent[1] + width * (node.dilation[0] - 1)


def nothing(node: object) -> Resources:
    """Layers that FINN's estimate leaves out: additions, copies, padding, pools."""
    return Resources()


def width_converter(node: WidthConverter) -> Resources:
    """Resources of a change of width: shift registers, through the least common multiple.

    Follows ``StreamingDataWidthConverter.lut_estimation``.

    Args:
        node: the layer.

    Example:
        >>> width_converter(WidthConverter(8, 32)).luts, width_converter(WidthConverter(8, 8)).luts
        (34, 0)
    """
    between = lcm(node.input_bits, node.output_bits)
    luts = 0
    if node.input_bits != between:
        luts += (between // node.input_bits).bit_length() - 1 + between
    if node.output_bits != between:
        luts += (between // node.output_bits - 1).bit_length() + node.output_bits
    return Resources(luts=luts)
