"""What boards have: look-up tables, memories and multipliers of their chips."""

from dataclasses import dataclass
from difflib import get_close_matches

from brevitas_multiquant.cost.luts.products import DspBlock
from brevitas_multiquant.cost.luts.resources import Resources
from brevitas_multiquant.errors import HardwareError


@dataclass(frozen=True)
class Board:
    """One that FINN knows.

    Args:
        name: FINN's.
        part: the chip.
        has: what is on the chip, by its data sheet. Shells, memory controllers and DMA take some.
        dsp: its kind of DSP.
    """

    name: str
    part: str
    has: Resources
    dsp: DspBlock


def _chip(name: str, luts: int, bram18: int, dsp: int, uram: int) -> tuple[str, Resources]:
    return name, Resources(luts, bram18, dsp, uram)


_ZYNQ_7020 = _chip("XC7Z020", 53_200, 280, 220, 0)
_ZU3EG = _chip("XCZU3EG", 70_560, 432, 360, 0)
_ZU28DR = _chip("XCZU28DR", 425_280, 2160, 4272, 80)
_CHIPS = {
    "AUP-ZU3_8GB": _ZU3EG,
    "KV260_SOM": _chip("XCK26", 117_120, 288, 1248, 64),
    "Pynq-Z1": _ZYNQ_7020,
    "Pynq-Z2": _ZYNQ_7020,
    "RFSoC2x2": _ZU28DR,
    "RFSoC4x2": _chip("XCZU48DR", 425_280, 2160, 4272, 80),
    "U200": _chip("XCU200", 1_182_240, 4320, 6840, 960),
    "U250": _chip("XCU250", 1_728_000, 5376, 12_288, 1280),
    "U280": _chip("XCU280", 1_303_680, 4032, 9024, 960),
    "U50": _chip("XCU50", 871_680, 2688, 5952, 640),
    "U55C": _chip("XCU55C", 1_303_680, 4032, 9024, 960),
    "Ultra96": _ZU3EG,
    "Ultra96-V2": _ZU3EG,
    "V80": _chip("XCV80", 2_574_208, 7482, 10_848, 1925),
    "VCK190": _chip("XCVC1902", 899_840, 1934, 1968, 463),
    "VEK280": _chip("XCVE2802", 520_704, 1200, 1312, 264),
    "ZCU102": _chip("XCZU9EG", 274_080, 1824, 2520, 0),
    "ZCU104": _chip("XCZU7EV", 230_400, 624, 1728, 96),
    "ZCU111": _ZU28DR,
}
_DSP_OF_FAMILY: dict[str, DspBlock] = {"XC7": "DSP48E1", "XCV": "DSP58"}

BOARDS = {
    name: Board(name, part, has, _DSP_OF_FAMILY.get(part[:3], "DSP48E2"))
    for name, (part, has) in _CHIPS.items()
}
"""Name -> board, for every board that the supported FINN knows."""


def board_named(name: str) -> Board:
    """A board by FINN's name.

    Args:
        name: such as ``"ZCU104"``.

    Raises:
        HardwareError: FINN knows no such board; with the nearest names.

    Example:
        >>> board_named("ZCU104").has
        Resources(luts=230400, bram18=624, dsp=1728, uram=96)
    """
    if name not in BOARDS:
        near = get_close_matches(str(name), BOARDS, n=3)
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        raise HardwareError(f"board: expected one of {list(BOARDS)}, got {name!r}{hint}")
    return BOARDS[name]
