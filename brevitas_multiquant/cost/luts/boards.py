"""What boards have: look-up tables, memories and multipliers of their chips."""

from dataclasses import dataclass

from brevitas_multiquant.cost.luts.products import DspBlock
from brevitas_multiquant.cost.luts.resources import Resources
from brevitas_multiquant.errors import HardwareError, did_you_mean


@dataclass(frozen=True)
class Board:
    """One that FINN knows, or a chip by itself.

    Args:
        name: FINN's; of a chip by itself, its part number as it was given.
        part: the chip.
        has: what is on the chip, by its data sheet. Shells, memory controllers and DMA take some.
        dsp: its kind of DSP.
    """

    name: str
    part: str
    has: Resources
    dsp: DspBlock


CHIPS = {
    # Artix-7 and Zynq-7000
    "XC7A35T": Resources(20_800, 100, 90),
    "XC7A50T": Resources(32_600, 150, 120),
    "XC7A100T": Resources(63_400, 270, 240),
    "XC7A200T": Resources(134_600, 730, 740),
    "XC7Z007S": Resources(14_400, 100, 66),
    "XC7Z010": Resources(17_600, 120, 80),
    "XC7Z012S": Resources(34_400, 144, 120),
    "XC7Z014S": Resources(40_600, 214, 170),
    "XC7Z015": Resources(46_200, 190, 160),
    "XC7Z020": Resources(53_200, 280, 220),
    "XC7Z030": Resources(78_600, 530, 400),
    "XC7Z035": Resources(171_900, 1000, 900),
    "XC7Z045": Resources(218_600, 1090, 900),
    "XC7Z100": Resources(277_400, 1510, 2020),
    # Zynq UltraScale+, with and without a graphics processor or video codec
    "XCK26": Resources(117_120, 288, 1248, 64),
    **dict.fromkeys(("XCZU2CG", "XCZU2EG"), Resources(47_232, 300, 240)),
    **dict.fromkeys(("XCZU3CG", "XCZU3EG"), Resources(70_560, 432, 360)),
    **dict.fromkeys(("XCZU4CG", "XCZU4EG", "XCZU4EV"), Resources(87_840, 256, 728, 48)),
    **dict.fromkeys(("XCZU5CG", "XCZU5EG", "XCZU5EV"), Resources(117_120, 288, 1248, 64)),
    **dict.fromkeys(("XCZU6CG", "XCZU6EG"), Resources(214_604, 1428, 1973)),
    **dict.fromkeys(("XCZU7CG", "XCZU7EG", "XCZU7EV"), Resources(230_400, 624, 1728, 96)),
    **dict.fromkeys(("XCZU9CG", "XCZU9EG"), Resources(274_080, 1824, 2520)),
    "XCZU11EG": Resources(298_560, 1200, 2928, 80),
    "XCZU15EG": Resources(341_280, 1488, 3528, 112),
    "XCZU17EG": Resources(423_408, 1592, 1590, 102),
    "XCZU19EG": Resources(522_720, 1968, 1968, 128),
    **dict.fromkeys(("XCZU28DR", "XCZU48DR"), Resources(425_280, 2160, 4272, 80)),
    # Alveo and Versal
    "XCU50": Resources(871_680, 2688, 5952, 640),
    "XCU55C": Resources(1_303_680, 4032, 9024, 960),
    "XCU200": Resources(1_182_240, 4320, 6840, 960),
    "XCU250": Resources(1_728_000, 5376, 12_288, 1280),
    "XCU280": Resources(1_303_680, 4032, 9024, 960),
    "XCV80": Resources(2_574_208, 7482, 10_848, 1925),
    "XCVC1902": Resources(899_840, 1934, 1968, 463),
    "XCVE2802": Resources(520_704, 1200, 1312, 264),
}
"""Chip -> what it has, by its data sheet."""

_CHIPS_OF_BOARDS = {
    "AUP-ZU3_8GB": "XCZU3EG",
    "KV260_SOM": "XCK26",
    "Pynq-Z1": "XC7Z020",
    "Pynq-Z2": "XC7Z020",
    "RFSoC2x2": "XCZU28DR",
    "RFSoC4x2": "XCZU48DR",
    "U200": "XCU200",
    "U250": "XCU250",
    "U280": "XCU280",
    "U50": "XCU50",
    "U55C": "XCU55C",
    "Ultra96": "XCZU3EG",
    "Ultra96-V2": "XCZU3EG",
    "V80": "XCV80",
    "VCK190": "XCVC1902",
    "VEK280": "XCVE2802",
    "ZCU102": "XCZU9EG",
    "ZCU104": "XCZU7EV",
    "ZCU111": "XCZU28DR",
}
_DSP_OF_FAMILY: dict[str, DspBlock] = {"XC7": "DSP48E1", "XCV": "DSP58"}


def _board(name: str, chip: str) -> Board:
    return Board(name, chip, CHIPS[chip], _DSP_OF_FAMILY.get(chip[:3], "DSP48E2"))


BOARDS = {name: _board(name, chip) for name, chip in _CHIPS_OF_BOARDS.items()}
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
        raise HardwareError(
            f"board: expected one of {list(BOARDS)}, got {name!r}{did_you_mean(name, BOARDS)}"
        )
    return BOARDS[name]


def board_of_part(part: str) -> Board:
    """A chip by itself, for boards that FINN does not know.

    Args:
        part: number of the part, as in Vivado: ``"xc7z010clg400-1"``, ``"xczu7ev-ffvc1156-2-e"``;
            upper or lower case.

    Raises:
        HardwareError: a chip that is not in `CHIPS`.

    Example:
        >>> board_of_part("xc7z010clg400-1").has
        Resources(luts=17600, bram18=120, dsp=80, uram=0)
    """
    found = [chip for chip in CHIPS if str(part).upper().startswith(chip)]
    if not found:
        raise HardwareError(
            f"part: expected a part number of one of the chips {list(CHIPS)}, got {part!r}"
            f"{did_you_mean(str(part).upper().partition('-')[0], CHIPS)}"
        )
    return _board(part, max(found, key=len))
