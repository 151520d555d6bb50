"""The logic of threshold units against what benchmarks/finn_synthesis.py had synthesised."""

import csv
from pathlib import Path

import pytest

from brevitas_multiquant.cost import luts
from brevitas_multiquant.cost.luts.synthesis import comparator_luts
from brevitas_multiquant.errors import HardwareError

RESULTS = Path(__file__).parents[3] / "benchmarks" / "results" / "finn_synthesis.csv"
with RESULTS.open() as file:
    ROWS = [{key: int(value) for key, value in row.items()} for row in csv.DictReader(file)]
COMPARATORS = [row for row in ROWS if not row["channels"]]
UNITS = [row for row in ROWS if row["channels"] and not row["whole"]]
WHOLE = [row for row in ROWS if row["whole"]]


def node_of(row):
    sizes = (row["threshold_bits"], row["output_bits"], row["pe"])
    return luts.Thresholds(row["channels"], 16, *sizes)


def rule(row):
    return luts.threshold_logic(node_of(row), bool(row["writable"]))


def test_there_is_something_to_compare_with():
    assert len(COMPARATORS) >= 10 and len(WHOLE) >= 4
    assert {row["output_bits"] for row in UNITS} >= {2, 4, 6, 8}
    assert {row["pe"] for row in UNITS} >= {1, 4, 8}


@pytest.mark.parametrize("row", COMPARATORS, ids=lambda row: str(row["threshold_bits"]))
def test_a_comparator_takes_two_luts_for_three_bits(row):
    # five bits took one more: the mapper did not pack the last pair
    assert 0 <= row["logic"] - comparator_luts(row["threshold_bits"]) <= 1


@pytest.mark.parametrize("row", UNITS, ids=lambda row: "-".join(map(str, row.values())))
def test_the_rule_gives_the_logic_that_was_synthesised(row):
    # counters of the queue grow a little with the stages, and the mapper shares LUTs of 5-bit
    # comparators: seen are -5 to +9 LUTs
    assert abs(row["logic"] - rule(row)) <= 9
    assert row["logic"] == pytest.approx(rule(row), rel=0.12)


@pytest.mark.parametrize("row", WHOLE, ids=lambda row: "-".join(map(str, row.values())))
def test_table_and_logic_add_up_to_the_whole_unit(row):
    assert row["logic"] == pytest.approx(row["finn"] + rule(row), abs=4)


def test_finn_counts_the_tables_alone():
    small = [row for row in UNITS if luts.resources(node_of(row)).bram18 == 0]
    assert len(small) >= 10
    for row in small:
        assert luts.resources(node_of(row)).luts == row["finn"]


def test_corrected_luts_add_the_logic_of_thresholds():
    table, window = luts.Thresholds(16, 1024, 12, 4), luts.Window(3, (34, 34), (3, 3), 8)
    finn = luts.total([table, window, table]).luts
    assert luts.corrected_luts([window]) == luts.resources(window).luts
    assert luts.corrected_luts([table, window, table]) == finn + 2 * luts.threshold_logic(table)
    assert luts.corrected_luts([table], writable=True) > luts.corrected_luts([table])


def test_other_layers_have_no_logic_of_thresholds():
    with pytest.raises(HardwareError, match="threshold_logic: expected Thresholds, got Addition"):
        luts.threshold_logic(luts.Addition(16, 1024))
