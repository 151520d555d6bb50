"""The configuration: validation, versions, what it writes."""

import dataclasses
import json
from functools import partial

import pytest

from brevitas_multiquant.core.config import CONFIG_VERSION, NOT_GIVEN, OPTIONS, MultiQuantConfig
from brevitas_multiquant.core.method import METHODS, Single
from brevitas_multiquant.errors import BitWidthError, ConfigError, SelectionError

SINGLE = dataclasses.replace(METHODS["multiquant"], name="single", topology=Single())


def written(**changes):
    return MultiQuantConfig.create([2, 4]).to_dict() | changes


def test_create_sorts_and_resolves():
    config = MultiQuantConfig.create([8, 2, 6, 4], "serial", merge="sum")
    assert config.bits == (2, 4, 6, 8)
    assert config.selection == {2: (0,), 4: (0, 1), 6: (0, 1, 2), 8: (0, 1, 2, 3)}
    assert (config.profile, config.merge) == ("paper", "sum")


def test_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        MultiQuantConfig.create([2]).merge = "sum"


def test_written_form_is_the_contract_of_version_1():
    assert CONFIG_VERSION == 1
    assert MultiQuantConfig.create([2, 4]).to_dict() == {
        "version": 1,
        "bits": [2, 4],
        "selection": {"2": [0], "4": [0, 1]},
        "profile": "paper",
        "merge": "mean",
        "half_width": "macs",
        "weights": "odd",
    }


def test_written_form_names_the_method_only_if_it_is_another(monkeypatch):
    """What reads version 1 knows the one method that was there."""
    assert "method" not in written()
    assert MultiQuantConfig.from_dict(written(method="multiquant")) == MultiQuantConfig.create(
        [2, 4]
    )
    monkeypatch.setitem(METHODS, "single", SINGLE)
    config = MultiQuantConfig.create([2, 4], method="single")
    assert config.selection == {2: (0,), 4: (0,)}
    assert config.to_dict()["method"] == "single"
    assert MultiQuantConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_methods():
    with pytest.raises(
        ConfigError,
        match=r"method: expected one of \['multiquant', .*\], got 'mu.*; did you mean 'multiquant'",
    ):
        MultiQuantConfig.create([2], method="multquant")
    with pytest.raises(ConfigError, match=r"got 4$"):
        MultiQuantConfig.from_dict(written(method=4))
    with pytest.raises(SelectionError, match="this method has one body"):
        Single().resolve({2: (0,), 4: (0, 1)}, [2, 4])
    assert Single().resolve({4: (0,), 2: (0,)}, [4, 2]) == {2: (0,), 4: (0,)}


def test_every_option_is_told_once():
    """Names, defaults and choices for files, keywords and command lines come from the fields."""
    assert [one.name for one in OPTIONS] == [
        *("bits", "selection", "profile", "merge", "half_width", "weights", "method"),
        *("grid", "weight_range", "activation_range", "shortcuts", "norms"),
    ]
    for one in OPTIONS[2:7]:
        assert one.default in one.metadata["choices"], one.name
    for one in OPTIONS[7:]:  # of some methods: each says what it may be, the default first
        assert one.default is None and one.metadata["unwritten"], one.name
        assert any(one.name in row.options for row in METHODS.values()), one.name
    assert MultiQuantConfig() == MultiQuantConfig.create([2, 4, 6, 8], "amortized")
    positional = MultiQuantConfig.create([2], "serial", "finn", "sum", "channels", "int2")
    assert (positional.profile, positional.merge, positional.weights) == ("finn", "sum", "int2")


def test_a_whole_configuration_and_single_options():
    config = MultiQuantConfig.create([2, 4], "serial", merge="sum")
    agreed = partial(MultiQuantConfig.agreed, config)
    assert agreed() is config
    assert (
        agreed(bits=[4, 2], selection={2: [0], 4: [1, 0]}, merge="sum", profile=NOT_GIVEN) is config
    )
    assert MultiQuantConfig.agreed(None, merge="sum").bits == (2, 4, 6, 8)
    for asked in ({"merge": "mean"}, {"bits": [2, 4, 6]}, {"weights": "int2"}, {"bits": [2]}):
        (name,) = asked
        with pytest.raises(ConfigError, match=rf"{name}: expected it as an option or in config, "):
            agreed(**asked)
    with pytest.raises(ConfigError, match="profile: expected one of"):
        agreed(profile="asic")
    with pytest.raises(ConfigError, match=r"config: expected a MultiQuantConfig, got dict: "):
        MultiQuantConfig.agreed(config.to_dict())


@pytest.mark.parametrize("later", [["half_width", "weights"], ["weights"]])
def test_written_without_what_came_later(later):
    """Even bit-widths and odd integers came first: what was written then does not name them."""
    data = written()
    for key in later:
        del data[key]
    assert MultiQuantConfig.from_dict(data) == MultiQuantConfig.create([2, 4])


@pytest.mark.parametrize("selection", ["amortized", "serial", {2: [1], 4: [0, 1]}])
def test_round_trip_through_json(selection):
    config = MultiQuantConfig.create([2, 4], selection, merge="sum")
    assert MultiQuantConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"bits": [1]}, BitWidthError, r"expected 2 to 16"),
        ({"bits": [3], "half_width": 0.5}, ConfigError, r"half_width: expected one of \['macs', "),
        ({"bits": [2], "selection": "x"}, SelectionError, r"got 'x'"),
        ({"bits": [2], "merge": "max"}, ConfigError, r"merge: expected one of \['mean', 'sum'\]"),
        (
            {"bits": [2], "weights": "int3"},
            ConfigError,
            r"weights: expected one of \['odd', 'int2', 'ternary'\], got 'int3'",
        ),
        ({"bits": [2], "weights": 2}, ConfigError, r"weights: expected one of .*, got 2"),
        ({"bits": [2], "profile": "asic"}, ConfigError, r"profile: expected one of \['paper', "),
    ],
)
def test_bad_options(options, error, message):
    with pytest.raises(error, match=message):
        MultiQuantConfig.create(**options)


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        (written(version=2), ConfigError, r"expected version 1, got 2; install the release"),
        (written(extra=1), ConfigError, r"expected the keys .* got"),
        ({"version": 1}, ConfigError, r"expected the keys \['bits', 'half_width'"),
        (None, ConfigError, r"expected the keys .* got None"),
        (written(selection=[0]), ConfigError, r"expected selection to map bit-widths"),
        (written(selection={"two": [0]}), ConfigError, r"expected selection to map bit-widths"),
        (written(selection={"2": [0]}), SelectionError, r"expected one entry for each"),
        (written(bits=[2, 17]), BitWidthError, r"expected 2 to 16"),
    ],
)
def test_bad_written_form(data, error, message):
    with pytest.raises(error, match=message):
        MultiQuantConfig.from_dict(data)
