"""Bad input gets a named error that says what to do."""

from typing import Any

import pytest
import torch
from torch import nn

from brevitas_multiquant import multiquantize
from brevitas_multiquant.allocation import Budget, CostTable, allocate
from brevitas_multiquant.errors import (
    BitWidthError,
    BudgetError,
    CalibrationError,
    ConfigError,
    HardwareError,
    MultiQuantError,
)

SHAPE = (1, 3, 8, 8)
IMAGES = torch.zeros(2, 3, 8, 8)


def model() -> nn.Module:
    layers = [nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 1)]
    return nn.Sequential(*layers, nn.ReLU(), nn.Flatten(), nn.Linear(64, 5)).eval()


BUDGETS = [
    ({}, BudgetError, "budget: expected one of .* got none of them"),
    ({"bitops": 1e9, "bytes": 1e6}, BudgetError, r"got \['bitops', 'bytes'\]"),
    ({"bitops": 0}, BudgetError, "bitops: expected a positive number, got 0"),
    ({"bytes": float("inf")}, BudgetError, "bytes: expected a positive number, got inf"),
    ({"ratio": "half"}, BudgetError, "ratio: expected a positive number, got 'half'"),
    ({"luts": 1e4}, BudgetError, "target_fps: expected frames a second"),
    ({"uniform": 4, "of": "luts"}, BudgetError, "target_fps: expected frames a second"),
    ({"luts": 1e4, "target_fps": 100, "board": "ZCU14"}, HardwareError, "did you mean ZCU104"),
    ({"uniform": 4, "board": "Zynq"}, HardwareError, "board: expected one of"),
    ({"uniform": 4, "of": "joules"}, ConfigError, "of: expected one of"),
    ({"uniform": 4, "convention": "hgq"}, ConfigError, "convention: expected one of"),
    ({"bitops": 1e9, "dsp": 4}, BudgetError, "dsp: expected it with a budget of LUTs"),
    ({"luts": 1e4, "target_fps": 9, "dsp": -1}, BudgetError, "dsp: expected 0 or more"),
    ({"luts": 1e4, "target_fps": 9, "dsp_price": -1}, BudgetError, "dsp_price: expected 0 or more"),
    ({"custom": 1.0}, BudgetError, "cost: expected a function or table"),
    ({"bitops": 1.0, "cost": max}, BudgetError, "cost: expected a function or table"),
    ({"uniform": 0}, BudgetError, "uniform: expected whole bits from 1 to 16, got 0"),
    ({"uniform": -3}, BudgetError, "uniform: expected whole bits from 1 to 16, got -3"),
    ({"uniform": 2.5}, BudgetError, "uniform: expected whole bits from 1 to 16, got 2.5"),
    ({"uniform": "3"}, BudgetError, "uniform: expected whole bits from 1 to 16, got '3'"),
    ({"ratio": 0.5, "uniform": 99}, BudgetError, "uniform: expected whole bits"),
    ({"bitops": 1e9, "of": "bytes"}, BudgetError, "of: expected it with a ratio"),
    (
        {"bytes": 1e6, "convention": "fracbits"},
        BudgetError,
        "convention: expected it with .*BitOPs",
    ),
    ({"bitops": 1e9, "target_fps": 30}, BudgetError, "target_fps: expected it with .*LUTs"),
    ({"bytes": 1e6, "board": "Pynq-Z1"}, BudgetError, "board: expected it with .*LUTs"),
    ({"uniform": 4, "clock_ns": 10}, BudgetError, "clock_ns: expected it with .*LUTs"),
    ({"bitops": 1e9, "dsp_price": 55}, BudgetError, "dsp_price: expected it with .*LUTs"),
    ({"luts": 1e4, "target_fps": -9}, BudgetError, "target_fps: expected a positive number"),
    (
        {"luts": 1e4, "target_fps": 9, "clock_ns": 0},
        BudgetError,
        "clock_ns: expected a positive number, got 0",
    ),
]


@pytest.mark.parametrize(("options", "kind", "words"), BUDGETS)
def test_budgets(options: dict[str, Any], kind: type[MultiQuantError], words: str) -> None:
    with pytest.raises(kind, match=words):
        Budget(**options)


SCORES = iter([0.9, 0.5])

CALLS: list[tuple[dict[str, Any], type[MultiQuantError], str]] = [
    ({"strategy": "sqnrr"}, ConfigError, "did you mean 'sqnr'"),
    ({"strategy": None}, ConfigError, "strategy: expected one of"),
    ({"candidates": ()}, BitWidthError, "expected at least one whole number of bits"),
    ({"candidates": (2, 2.5)}, BitWidthError, "expected at least one whole number of bits"),
    ({"candidates": (0, 2)}, BitWidthError, "from 1 to 16"),
    ({"candidates": "234"}, BitWidthError, "expected at least one whole number of bits"),
    ({"candidates": {"weight": (2,)}}, BitWidthError, "bits of each of"),
    ({"pins": {"2": 9}}, BitWidthError, "pins, 2: expected one of the weight bits"),
    ({"pins": {"2": (2, 1)}}, BitWidthError, "pins, 2: expected one of the activation bits"),
    ({"pins": {"2": (2, 1, 3)}}, BitWidthError, "pins, 2: expected bits or a pair of bits"),
    ({"pins": {"22": 2}}, BitWidthError, "pins: expected sites or layers, got '22'; did you mean"),
    ({"pins": {"2": 2, "[2]": 3, "?": 4}}, BitWidthError, "expected the 3 bits that another pin"),
    ({"groups": [["2", "none"]]}, BitWidthError, "groups: expected sites or layers, got 'none'"),
    ({"groups": [["2", "4"]], "pins": {"2": 2}}, BitWidthError, "expected all of them pinned"),
    (
        {"groups": [["2", "4"]], "pins": {"2": 2, "4": 3}},
        BitWidthError,
        "expected one pin of them",
    ),
    ({"samples": 0}, ConfigError, "samples: expected at least 1"),
    ({"samples": 2.5}, ConfigError, "samples: expected at least 1, got 2.5"),
    ({"bits": 0}, BitWidthError, "bits: expected a whole number from 1 to 16, got 0"),
    ({"bits": 99}, BitWidthError, "bits: expected a whole number from 1 to 16, got 99"),
    *(
        (
            {"exact": True, "strategy": name},
            ConfigError,
            rf"exact: expected it with one of \['sqnr', 'fisher', 'kl'\], got '{name}'",
        )
        for name in ("uniform", "mixquant", "fracbits", "supernet", "sensitivity", "amed", "csq")
    ),
    (
        {"exact": True, "budget": Budget(uniform=4, of="luts", target_fps=1000)},
        ConfigError,
        "exact: expected a budget whose sites cost separately, as of BitOPs or bytes, got luts",
    ),
    ({"data": None}, CalibrationError, "strategy 'sqnr': expected data="),
    ({"data": 3}, CalibrationError, "expected batches of images, got int"),
    ({"data": []}, CalibrationError, "expected at least one batch"),
    ({"data": [torch.zeros(3)]}, CalibrationError, "expected batches of images"),
    ({"strategy": "fisher"}, CalibrationError, "'fisher': expected batches .images, labels."),
    (
        {"strategy": "fisher", "data": [(IMAGES, torch.zeros(3))]},
        CalibrationError,
        "one class number for each image",
    ),
    ({"budget": 1e9}, BudgetError, "budget: expected a Budget"),
    ({"budget": None}, BudgetError, "or accuracy_drop=0.01 in place of one, got None"),
    ({"accuracy_drop": -0.1}, ConfigError, "accuracy_drop: expected a number from 0 on, got -0.1"),
    ({"accuracy_drop": "1%"}, ConfigError, "accuracy_drop: expected a number from 0 on"),
    ({"accuracy_drop": 0.1}, CalibrationError, "'accuracy_drop': expected batches .images, label"),
    ({"accuracy_drop": 0.1, "data": None}, CalibrationError, "'accuracy_drop': expected data="),
    ({"evaluate": len}, ConfigError, "evaluate: expected it with accuracy_drop=, got it alone"),
    (
        {"accuracy_drop": 0.1, "evaluate": lambda net: None},
        ConfigError,
        "evaluate: expected it to give a number, got None",
    ),
    (
        {"accuracy_drop": 0, "evaluate": lambda net: next(SCORES)},
        BudgetError,
        "expected the most bits within the limits to reach 0.9, 0 below the .* 0.9, got 0.5",
    ),
    (
        {"strategy": "fliqs", "options": {"steps": 0}, "data": [(IMAGES, torch.zeros(2).long())]},
        ConfigError,
        "steps: expected at least 1, got 0",
    ),
    ({"options": {"metric": "kl"}}, ConfigError, r"options: expected none for the .*'sqnr', got"),
    (
        {"strategy": "sensitivity", "options": {"metrics": "kl"}},
        ConfigError,
        r"options: expected \['metric', 'search'\] for the strategy 'sensitivity', got \['metrics",
    ),
    (
        {"strategy": "sensitivity", "options": {"metric": "k"}},
        ConfigError,
        "metric: expected one of .*did you mean 'kl'",
    ),
    (
        {"strategy": "sensitivity", "options": {"search": "binary"}},
        ConfigError,
        "search: expected one of",
    ),
    ({"budget": Budget(bitops=100)}, BudgetError, r"budget: expected 10240 to 163840 bitops"),
    (
        {"budget": Budget(custom=1.0, cost=CostTable({("2", 2, 2): 1.0}))},
        BudgetError,
        r"none of '2' at \(2, 3\), .* and \d+ more; .* layers \['2'\]",
    ),
    (
        {"budget": Budget(bitops=2e4), "strategy": "uniform", "pins": {"2": (8, None)}},
        BudgetError,
        "expected a budget that some uniform bits keep to|budget: expected",
    ),
]


@pytest.mark.parametrize(("options", "kind", "words"), CALLS)
def test_calls(options: dict[str, Any], kind: type[MultiQuantError], words: str) -> None:
    given = {"budget": Budget(uniform=4), "data": [IMAGES], "input_shape": SHAPE, **options}
    with pytest.raises(kind, match=words):
        allocate(model(), **given)


@pytest.mark.parametrize(
    ("options", "kind", "words"),
    [
        ({"strategy": "fisher"}, ConfigError, "expected a float model for 'fisher'"),
        ({"strategy": "mixquant"}, ConfigError, "expected a float model for 'mixquant'"),
        (
            {"strategy": "sensitivity", "options": {"metric": "fisher"}},
            ConfigError,
            r"metric: expected one of \['noise', 'kl'\] for a network, got 'fisher'",
        ),
        ({"candidates": (2, 3)}, BitWidthError, r"bit-widths of the network, \[2, 4\], got \[3\]"),
        ({"pins": {"2": (4, 4)}}, BitWidthError, r"one of the weight bits \[2\]"),
        ({"bits": 0}, BitWidthError, r"one of the network's, \[2, 4\], got 0"),
        ({"bits": 3}, BitWidthError, r"one of the network's, \[2, 4\], got 3"),
        ({"profile": "finn"}, ConfigError, r"expected \['profile'\] for a float model"),
    ],
)
def test_calls_with_a_network(options: dict[str, Any], kind: Any, words: str) -> None:
    net = multiquantize(model(), [2, 4], input_shape=SHAPE)
    with pytest.raises(kind, match=words):
        allocate(net, Budget(ratio=0.5), **{"data": [IMAGES], **options})


def test_networks_whose_bits_are_fixed() -> None:
    net = multiquantize(model(), [4], method="individual", input_shape=SHAPE)
    with pytest.raises(ConfigError, match="'individual', whose bits are fixed"):
        allocate(net, Budget(ratio=0.5), data=[IMAGES])
    nested = multiquantize(model(), [2, 4], method="adabits", input_shape=SHAPE)
    with pytest.raises(BitWidthError, match=r"bit-widths of the network, \[2, 4\], got \[3\]"):
        allocate(
            nested, Budget(ratio=0.5), data=[IMAGES], candidates={"weight": [3], "activation": [2]}
        )


def test_no_model() -> None:
    with pytest.raises(ConfigError, match="expected a model or network, got str"):
        allocate("resnet18", Budget(uniform=4))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("layer,cost\na,1\n", "expected the columns"),
        ("layer,bits,costs\na,2,1\n", "expected the columns .*did you mean costs"),
        ("layer,bits,cost\na,2,1\na,2,2\n", "line 3: expected each layer once .*'a', 2, 2"),
        ("layer,bits,cost\na,0,1\n", "a: expected whole bits from 1 on, got 0"),
        ("layer,bits,cost\na,2,nan\n", "a: expected a number, got nan"),
        (
            "layer,weight_bits,activation_bits,cost\na,2,2,fast\n",
            "line 2: expected a name and numbers",
        ),
        ("layer,weight_bits,activation_bits,cost\na,2,2\n", "line 2: expected a name and numbers"),
    ],
)
def test_cost_tables(tmp_path: Any, text: str, words: str) -> None:
    (tmp_path / "costs.csv").write_text(text)
    with pytest.raises(BudgetError, match=words):
        CostTable.from_csv(tmp_path / "costs.csv")
    with pytest.raises(BudgetError, match="expected a CSV file"):
        CostTable.from_csv(tmp_path / "none.csv")
