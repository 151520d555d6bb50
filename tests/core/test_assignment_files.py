"""Assignments in files: written, read back, and refused by name."""

import json

import pytest
import yaml

from brevitas_multiquant import Assignment
from brevitas_multiquant.core.precision import activation_bits, described, name_of, network_bits
from brevitas_multiquant.errors import BitWidthError

MIXED = Assignment(4, {"layer1.conv1": (2, 8), "layer1.conv2": (2, 2)})


@pytest.mark.parametrize("name", ["mixed.json", "mixed.yaml", "MIXED.YML"])
def test_what_is_saved_is_what_is_read(name, tmp_path):
    MIXED.save(tmp_path / name)
    assert Assignment.load(str(tmp_path / name)) == MIXED


def test_the_files_hold_plain_values(tmp_path):
    MIXED.save(tmp_path / "mixed.json")
    MIXED.save(tmp_path / "mixed.yaml")
    text = (tmp_path / "mixed.json").read_text()
    assert json.loads(text) == MIXED.to_dict() and text.endswith("}\n")
    assert yaml.safe_load((tmp_path / "mixed.yaml").read_text()) == MIXED.to_dict()


def test_what_somebody_wrote_by_hand_is_read(tmp_path):
    (tmp_path / "own.yaml").write_text("version: 1\nbits: 4\nsites:\n  conv1: [2, 8]\n")
    assert Assignment.load(tmp_path / "own.yaml") == Assignment(4, {"conv1": (2, 8)})


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("mixed.txt", "", r"a file called \.json, \.yaml, \.yml, got '.*mixed\.txt'"),
        ("mixed.json", "{", r"mixed\.json: expected JSON, got "),
        ("mixed.yaml", "a: [", r"mixed\.yaml: expected YAML, got "),
        ("mixed.json", "[]", r"mixed\.json: assignment: expected the keys"),
        ("mixed.json", '{"version": 2, "bits": 4, "sites": {}}', r"expected version 1, got 2"),
        (
            "mixed.json",
            '{"version": 1, "bits": 4, "sites": {"a": [2]}}',
            r"a: expected",
        ),
        ("mixed.json", None, r"mixed\.json: expected a file that can be read, got "),
    ],
)
def test_anything_else_is_refused_by_name(name, text, message, tmp_path):
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(BitWidthError, match=message):
        Assignment.load(tmp_path / name)


def test_a_file_that_cannot_be_written_is_refused(tmp_path):
    with pytest.raises(BitWidthError, match=r"expected a file that can be written, got "):
        MIXED.save(tmp_path / "none" / "mixed.json")
    with pytest.raises(BitWidthError, match=r"a file called \.json, \.yaml, \.yml"):
        MIXED.save(tmp_path / "mixed")
    assert not list(tmp_path.iterdir())


def test_without_pyyaml_the_package_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "yaml", None)
    with pytest.raises(BitWidthError, match=r"pip install pyyaml, or use a file called \.json"):
        MIXED.save(tmp_path / "mixed.yaml")


def test_names_are_short_stable_and_tell_assignments_apart():
    other_order = Assignment(4, {"layer1.conv2": (2, 2), "layer1.conv1": (2, 8)})
    assert MIXED.name == other_order.name == "4b-92d4ed9c"
    others = [
        Assignment(2, MIXED),
        MIXED.with_activations({"layer1.conv2": 4}),
        Assignment(4, {"layer1.conv1": (2, 8)}),
        Assignment(4, {**MIXED, "layer1.conv2": (3, 2)}),
    ]
    assert len({MIXED.name, *(one.name for one in others)}) == 5


def test_a_setting_is_a_bit_width_or_an_assignment():
    assert name_of(4) == "4b" and described(4) == "4 bits"
    assert network_bits(4) == 4 and activation_bits(4) == {4}
    assert name_of(MIXED) == MIXED.name and described(MIXED) == f"assignment {MIXED.name}"
    assert network_bits(MIXED) == 4 and activation_bits(MIXED) == {8, 2}
