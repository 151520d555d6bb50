"""Measured costs between the bit-widths that were measured, against the formula written out."""

from itertools import product

import pytest

from brevitas_multiquant.allocation import CostTable
from brevitas_multiquant.allocation.cost_table import require_rows
from brevitas_multiquant.errors import BudgetError

MEASURED = {("a", w, a): 10.0 * w + a * a for w, a in product((2, 4, 8), (2, 8))}


def slow(weight: int, read: int) -> float:
    """Bilinear in the box around, by areas."""
    low = max(one for one in (2, 4) if one <= weight)
    high = {2: 4, 4: 8}[low]
    total = 0.0
    for w, a in product((low, high), (2, 8)):
        area = abs((low + high - w) - weight) * abs((10 - a) - read)
        total += area * MEASURED["a", w, a]
    return total / ((high - low) * 6)


def test_between_measured_bits() -> None:
    table = CostTable(MEASURED, interpolate=True)
    for weight, read in product(range(2, 9), range(2, 9)):
        assert table["a", weight, read] == pytest.approx(slow(weight, read), rel=1e-12)
    assert list(table) == list(MEASURED) and ("a", 3, 3) in table
    for key in (("a", 1, 4), ("a", 4, 9), ("b", 2, 2)):
        assert key not in table
    assert ("a", 3, 3) not in CostTable(MEASURED)


def test_a_corner_that_was_not_measured() -> None:
    holed = {key: cost for key, cost in MEASURED.items() if key != ("a", 4, 8)}
    table = CostTable(holed, interpolate=True)
    assert ("a", 3, 2) in table and ("a", 3, 4) not in table
    with pytest.raises(BudgetError, match=r"none of 'a' at \(3, 4\); measure them"):
        require_rows(table, [("a", 3, 2), ("a", 3, 4), ("a", 3, 4)])
    with pytest.raises(BudgetError, match=r"'layer1' at \(2, 2\); did you mean layer.1"):
        require_rows(CostTable({("layer.1", 2, 2): 1.0}), [("layer1", 2, 2)])


def test_one_type_for_both(tmp_path) -> None:
    path = tmp_path / "power.csv"
    path.write_text("layer,bits,latency,power\nconv,2,1,5\nconv,4,2,9\nconv,8,7,30\n")
    table = CostTable.from_csv(path, cost="power", interpolate=True)
    assert [table["conv", 2, 4], table["conv", 4, 2], table["conv", 3, 2]] == [9, 9, 7]
    assert ("conv", 9, 2) not in table
    plain = CostTable.from_csv(path, cost="latency")
    assert plain["conv", 8, 2] == 7 and ("conv", 3, 2) not in plain
