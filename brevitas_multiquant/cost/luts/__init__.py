"""What a layer costs on an FPGA: LUTs, block RAMs, DSPs and UltraRAMs, without FINN.

FINN's rules of estimation (finn-plus 1.6.1) as pure functions: descriptions of hardware layers in,
resources out. They reproduce FINN's own report, layer by layer; `tests/cost/luts/` compares them.
They are estimates, as FINN's are. What FINN leaves out of threshold units and products, counted by
an open synthesis, is in `brevitas_multiquant.cost.luts.synthesis`, beside them and never added
silently.
"""

from brevitas_multiquant.cost.luts.boards import BOARDS, CHIPS, Board, board_named, board_of_part
from brevitas_multiquant.cost.luts.convolution import ConvolutionShape
from brevitas_multiquant.cost.luts.folding import fold, target_cycles, unfolded
from brevitas_multiquant.cost.luts.memories import fewest_luts
from brevitas_multiquant.cost.luts.nodes import (
    Addition,
    Concatenation,
    DepthwiseProduct,
    Duplication,
    MatrixProduct,
    Node,
    Padding,
    Pool,
    PositionSum,
    Thresholds,
    Upsampling,
    WidthConverter,
    Window,
)
from brevitas_multiquant.cost.luts.product_synthesis import product_logic
from brevitas_multiquant.cost.luts.resources import Resources
from brevitas_multiquant.cost.luts.rules import resources, total
from brevitas_multiquant.cost.luts.synthesis import (
    corrected_luts,
    threshold_logic,
    uncounted_luts,
)
from brevitas_multiquant.cost.luts.table import ResourceTable, tabulate
from brevitas_multiquant.cost.luts.widths import (
    accumulator_bits,
    accumulator_range,
    integer_bits,
    largest_accumulator_bits,
    threshold_bits,
)

__all__ = [
    "BOARDS",
    "CHIPS",
    "Addition",
    "Board",
    "Concatenation",
    "ConvolutionShape",
    "DepthwiseProduct",
    "Duplication",
    "MatrixProduct",
    "Node",
    "Padding",
    "Pool",
    "PositionSum",
    "ResourceTable",
    "Resources",
    "Thresholds",
    "Upsampling",
    "WidthConverter",
    "Window",
    "accumulator_bits",
    "accumulator_range",
    "board_named",
    "board_of_part",
    "corrected_luts",
    "fewest_luts",
    "fold",
    "integer_bits",
    "largest_accumulator_bits",
    "product_logic",
    "resources",
    "tabulate",
    "target_cycles",
    "threshold_bits",
    "threshold_logic",
    "total",
    "uncounted_luts",
    "unfolded",
]
