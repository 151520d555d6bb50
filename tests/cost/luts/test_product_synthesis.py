"""What surrounds products against what benchmarks/finn_synthesis_products.py had synthesised."""

from dataclasses import replace

import pytest

from benchmarks import finn_yosys
from benchmarks.finn_synthesis_products import CSV, unit_of
from brevitas_multiquant.cost import luts
from brevitas_multiquant.cost.luts.product_synthesis import (
    lane_bits,
    logic_around_dsps,
    product_logic,
    replay_memory,
    streamer_logic,
)
from brevitas_multiquant.cost.luts.products import uncounted_weight_luts

ROWS = finn_yosys.read(CSV)
AROUND = [row for row in ROWS if row["part"] != "weights" and row["core"] != "LUT"]
WEIGHTS = [row for row in ROWS if row["part"] == "weights"]
PRODUCT = luts.MatrixProduct(144, 16, 1024, 8, 8, 22, pe=4, simd=4)


def name(row):
    return "-".join([row["core"], *(row[key] for key in ("inputs", "outputs", "pe", "simd"))])


def found(row):
    return int(row["logic"]) + int(row["memory"])


def test_there_is_something_to_compare_with():
    assert len(AROUND) >= 15 and len(WEIGHTS) >= 4
    assert sum(row["held_out"] == "1" for row in ROWS) >= 3


@pytest.mark.parametrize("row", AROUND, ids=name)
def test_the_rule_gives_what_was_synthesised_around_dsps(row):
    rule = logic_around_dsps(unit_of(row).node, row["core"])
    # the rule follows FINN's text adder by adder; the mapper shares or splits a few LUTs
    assert found(row) == pytest.approx(rule, rel=0.06, abs=8)


@pytest.mark.parametrize("row", WEIGHTS, ids=name)
def test_the_rule_gives_what_streams_the_weights(row):
    assert found(row) == pytest.approx(streamer_logic(unit_of(row).node), abs=1)


def test_outputs_share_a_dsp():
    assert lane_bits(PRODUCT, "DSP48E2") == (19, 22)
    assert lane_bits(replace(PRODUCT, weight_bits=9, accumulator_bits=23), "DSP48E2") == (18, 23)
    four = luts.MatrixProduct(144, 16, 1024, 4, 4, 13, pe=4, simd=4)
    assert len(lane_bits(four, "DSP48E2")) == 4
    assert len(lane_bits(replace(four, narrow=False), "DSP48E1")) == 3


def test_a_memory_that_is_deep_has_multiplexers():
    assert [replay_memory(28, depth) for depth in (1, 32, 33, 64)] == [16, 16, 32, 32]
    assert replay_memory(28, 128) == 2 * 32 + 28


def test_products_in_luts_are_finns_numbers_and_a_streamer():
    product = luts.MatrixProduct(144, 16, 1024, 3, 4, 12, simd=12)
    assert product_logic(product) == streamer_logic(product)
    assert product_logic(replace(product, mem_mode="external")) == 0
    assert product_logic(PRODUCT) == streamer_logic(PRODUCT) + logic_around_dsps(PRODUCT, "DSP48E2")


def test_weights_in_luts_are_counted_beside_dsps():
    """FINN's estimate has none of them: 8 bits of 144 x 16 weights are 288 LUTs of 64 bits."""
    placed = replace(PRODUCT, ram_style="distributed")
    assert luts.resources(placed).luts == 0
    assert uncounted_weight_luts(placed, "DSP48E2") == 128 * 3
    assert product_logic(placed) == product_logic(PRODUCT) + 128 * 3
