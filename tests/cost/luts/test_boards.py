"""Boards and resources."""

import pytest

from brevitas_multiquant.cost.luts import BOARDS, CHIPS, Resources, board_named, board_of_part
from brevitas_multiquant.errors import HardwareError


def test_boards_in_order():
    assert len(BOARDS) == 19 and sorted(BOARDS) == list(BOARDS)


@pytest.mark.parametrize(
    ("name", "has", "dsp"),
    [
        ("Pynq-Z1", Resources(53_200, 280, 220, 0), "DSP48E1"),
        ("Ultra96-V2", Resources(70_560, 432, 360, 0), "DSP48E2"),
        ("KV260_SOM", Resources(117_120, 288, 1248, 64), "DSP48E2"),
        ("U250", Resources(1_728_000, 5376, 12_288, 1280), "DSP48E2"),
        ("VCK190", Resources(899_840, 1934, 1968, 463), "DSP58"),
    ],
)
def test_boards(name, has, dsp):
    assert (board_named(name).has, board_named(name).dsp) == (has, dsp)
    assert board_named(name).name == name


def test_unknown_boards():
    with pytest.raises(HardwareError, match="got 'ZCU105'; did you mean ZCU104"):
        board_named("ZCU105")
    with pytest.raises(HardwareError, match=r"expected one of .*'ZCU104'.* got 7$"):
        board_named(7)


@pytest.mark.parametrize(
    ("part", "chip", "dsp"),
    [
        ("xc7z010clg400-1", "XC7Z010", "DSP48E1"),
        ("xc7a100tcsg324-1", "XC7A100T", "DSP48E1"),
        ("xczu4ev-sfvc784-1-e", "XCZU4EV", "DSP48E2"),
        ("XCZU48DR-ffvg1517-2-e", "XCZU48DR", "DSP48E2"),
        ("xcvc1902-vsva2197-2MP-e-S", "XCVC1902", "DSP58"),
    ],
)
def test_parts(part, chip, dsp):
    board = board_of_part(part)
    assert (board.name, board.part, board.has, board.dsp) == (part, chip, CHIPS[chip], dsp)


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ("xczu8eg-ffvc900-1-e", r"got 'xczu8eg-ffvc900-1-e'; did you mean .*XCZU\d"),
        ("", "part: expected a part number of one of the chips .*, got ''$"),
        (7, "part: expected a part number .*, got 7$"),
    ],
)
def test_unknown_parts(part, message):
    with pytest.raises(HardwareError, match=message):
        board_of_part(part)


def test_sums_and_prices():
    parts = [Resources(100, 2, 3, 0), Resources(luts=50, uram=1)]
    assert Resources.sum(parts) == Resources(150, 2, 3, 1)
    assert Resources.sum([]) == Resources()
    assert Resources(150, 2, 3, 1).priced(dsp=55, bram18=10, uram=100) == 150 + 165 + 20 + 100


def test_what_does_not_fit():
    board = board_named("Pynq-Z1")
    assert Resources(53_200, 280, 220).exceeded(board.has) == []
    assert Resources(53_201, 1, 221, 1).exceeded(board.has) == ["luts", "dsp", "uram"]
