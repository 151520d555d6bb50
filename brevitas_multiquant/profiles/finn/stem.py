"""The stem: an 8-bit image and 8-bit weights, and codes that all branches read."""

from brevitas_multiquant.core.panel import Dial
from brevitas_multiquant.core.power_of_two import EDGE_BITS
from brevitas_multiquant.nn.switchable import SwitchableQuantizer
from brevitas_multiquant.profiles.finn.graph import (
    first_channels,
    insert_after,
    module_of,
    result_of,
    source_of,
    swap_layers,
)
from brevitas_multiquant.profiles.finn.modules import FixedPointQuantizer
from brevitas_multiquant.profiles.finn.operands import quantize_operands
from brevitas_multiquant.profiles.profile import Parts

FIRST = "first_quant"
"""Name, in the stem, of the quantizer that all branches read."""


def quantize_stem(parts: Parts) -> None:
    """The image and the stem's layers in 8 bits."""
    stem = parts.stem
    image = source_of(stem)
    if result_of(stem) is image:
        return  # the network has no stem of its own
    swap_layers(parts, stem)
    if parts.config.revision > 1:
        quantize_operands(stem, dict.fromkeys(parts.config.bits, EDGE_BITS), parts)
    insert_after(stem, image, "image_quant", FixedPointQuantizer(EDGE_BITS, True, parts.active))
    stem.recompile()


def quantize_first_codes(parts: Parts) -> None:
    """The stem gives codes: one quantizer for each bit-width, before the branches part."""
    stem = parts.stem
    own = _first_of_branch(parts)
    dial = own.dial if own and isinstance(own.dial, Dial) else parts.active.dial(FIRST)
    ranges = own.ranges if own else SwitchableQuantizer.ranges
    first = SwitchableQuantizer.create(parts.config.bits, parts.active, dial, ranges=ranges)
    insert_after(stem, result_of(stem), FIRST, first)
    stem.recompile()


def _first_of_branch(parts: Parts) -> SwitchableQuantizer | None:
    """The quantizer that the one in the stem takes the place of, if there is one."""
    branch = parts.branches[0]
    readers = [module_of(branch, node) for node in first_channels(source_of(branch)).users]
    return next((one for one in readers if isinstance(one, SwitchableQuantizer)), None)
