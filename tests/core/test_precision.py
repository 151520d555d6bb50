"""Assignments as data: what they hold, refuse, and are written as; dials; which sums are exact."""

import copy
import json
import pickle
import re
from dataclasses import dataclass

import numpy as np
import pytest
import yaml

from brevitas_multiquant.core.exact_sums import sums_are_exact
from brevitas_multiquant.core.panel import Panel
from brevitas_multiquant.core.precision import Assignment, Precision
from brevitas_multiquant.errors import BitWidthError, MultiQuantError, NetworkError


@pytest.fixture
def mixed() -> Assignment:
    return Assignment(4, {"a": (2, 4), "b.conv": (2, 8), "c": Precision(2, 2)})


@dataclass
class Net:
    """What an assignment asks of a network."""

    bits: tuple[int, ...] = (2, 4, 8)
    sites: tuple[str, ...] = ("layer1.conv1", "layer1.conv2")


def test_it_is_a_mapping(mixed):
    assert list(mixed) == ["a", "b.conv", "c"] and len(mixed) == 3
    assert dict(mixed) == {"a": (2, 4), "b.conv": (2, 8), "c": (2, 2)}
    assert mixed["b.conv"] == Precision(weight=2, activation=8)
    assert mixed.bits == 4 and "d" not in mixed
    assert dict(mixed.own) == {"b.conv": 8, "c": 2} and not mixed.is_uniform


def test_it_cannot_be_changed(mixed):
    before = hash(mixed)
    with pytest.raises(AttributeError):
        mixed.bits = 2
    with pytest.raises(TypeError):
        mixed["a"] = Precision(2, 2)
    with pytest.raises(TypeError):
        mixed.own["a"] = 2
    with pytest.raises(AttributeError):
        mixed["a"].activation = 2
    given = {"a": (2, 2)}
    other = Assignment(4, given)
    given["a"] = (2, 4)
    assert other["a"].activation == 2 and hash(mixed) == before


@pytest.mark.parametrize(
    "through",
    [
        lambda one: Assignment.from_dict(one.to_dict()),
        lambda one: Assignment.from_dict(json.loads(json.dumps(one.to_dict()))),
        lambda one: Assignment.from_dict(yaml.safe_load(yaml.safe_dump(one.to_dict()))),
        lambda one: pickle.loads(pickle.dumps(one)),
        copy.copy,
        copy.deepcopy,
        lambda one: eval(repr(one)),
        lambda one: Assignment(one.bits, dict(reversed(list(one.items())))),
    ],
)
def test_it_comes_back_equal(mixed, through):
    back = through(mixed)
    assert back == mixed and hash(back) == hash(mixed)
    assert type(back) is Assignment and type(back["a"]) is Precision
    assert back.own == mixed.own


def test_what_is_written_is_plain(mixed):
    assert mixed.to_dict() == {
        "version": 1,
        "bits": 4,
        "sites": {
            "a": {"weight": 2, "activation": 4},
            "b.conv": {"weight": 2, "activation": 8},
            "c": {"weight": 2, "activation": 2},
        },
    }


def test_equality(mixed):
    assert mixed != Assignment(2, dict(mixed))
    assert mixed != mixed.with_activations({"a": 2})
    assert mixed != Assignment(4, {"a": (2, 4)})
    assert mixed != dict(mixed) and dict(mixed) != mixed
    assert mixed.with_activations({"c": 4, "b.conv": 4}).is_uniform
    assert mixed.with_activations({"c": 8})["c"] == (2, 8) and mixed["c"] == (2, 2)


def test_whole_numbers_of_numpy_become_ints():
    one = Assignment(np.int64(4), {"a": (np.int32(2), np.int64(4))})
    assert type(one.bits) is int and {type(bits) for bits in one["a"]} == {int}
    json.dumps(one.to_dict())


@pytest.mark.parametrize(
    ("bits", "sites", "message"),
    [
        (4.0, {}, "assignment, bits: expected a whole number of bits, got 4.0"),
        (True, {}, "got True"),
        (0, {}, "got 0"),
        (4, [("a", (2, 4))], "expected sites as a mapping"),
        (4, {"a": 4}, "assignment, a: expected ['weight', 'activation'], got 4"),
        (4, {"a": (2, 4, 4)}, "got (2, 4, 4)"),
        (4, {"a": (2, "4")}, "assignment, a, activation: expected a whole number"),
        (4, {"a": {"weight": 2}}, "got {'weight': 2}"),
        (4, {1: (2, 4)}, "expected sites by name, got 1"),
    ],
)
def test_what_it_refuses(bits, sites, message):
    with pytest.raises(BitWidthError, match=re.escape(message)):
        Assignment(bits, sites)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 2}, "expected version 1, got 2"),
        ({"sites": None}, "expected sites as a mapping"),
        ({"more": 1}, "expected the keys ['bits', 'sites', 'version']"),
    ],
)
def test_what_from_dict_refuses(mixed, change, message):
    with pytest.raises(BitWidthError, match=re.escape(message)):
        Assignment.from_dict({**mixed.to_dict(), **change})
    with pytest.raises(BitWidthError):
        Assignment.from_dict([])


def test_a_site_that_it_does_not_have(mixed):
    with pytest.raises(BitWidthError, match=r"got 'b.cov'; did you mean 'b.conv'\?"):
        mixed.with_activations({"b.cov": 2})


def test_uniform():
    assert Assignment.uniform(Net(), 8) == Assignment(8, dict.fromkeys(Net().sites, (2, 8)))
    with pytest.raises(BitWidthError, match=r"bit-widths \[2, 4, 8\] this network .* got 3"):
        Assignment.uniform(Net(), 3)
    with pytest.raises(NetworkError, match="expected a MultiQuantNet, got int"):
        Assignment.uniform(4, 4)


def test_every_reason_is_told_at_once():
    wrong = Assignment(3, {"layer1.cnv2": (2, 4), "layer1.conv1": (4, 5), "x": (2, 2)})
    with pytest.raises(MultiQuantError) as caught:
        wrong.require_fits("at_bits", Net().bits, Net().sites)
    for reason in (
        "at_bits: expected one of the bit-widths [2, 4, 8]",
        "got 'layer1.cnv2'; did you mean 'layer1.conv2'?",
        "layer1.conv1: expected activation bits of [2, 4, 8], got 5",
        "layer1.conv1: expected the 2-bit weights of branches, got 4",
        "got 'x'; its sites are ['layer1.conv1', 'layer1.conv2']",
    ):
        assert reason in str(caught.value)


class TestDials:
    def test_they_show_their_own_bits_or_the_network_s(self):
        panel = Panel(4)
        a, b = panel.dial("a"), panel.dial("b")
        assert panel.dial("a") is a and (a.bits, b.bits) == (4, 4)
        panel.switch(Assignment(2, {"b": (2, 8)}))
        assert (panel.bits, a.bits, b.bits) == (2, 2, 8)
        panel.switch(8)
        assert (a.bits, b.bits, panel.setting) == (8, 8, 8)

    def test_blocks_restore_them(self):
        panel = Panel(4)
        dial = panel.dial("a")
        outer, inner = Assignment(4, {"a": (2, 8)}), Assignment(8, {"a": (2, 2)})
        with panel.at(outer):
            with panel.at(inner):
                assert (panel.bits, dial.bits) == (8, 2)
            with pytest.raises(RuntimeError), panel.at(2):
                assert dial.bits == 2
                raise RuntimeError
            with panel.floating():
                assert dial.bits == 8 and not panel.quantized
            assert panel.setting == outer == panel.assignment
        assert (panel.bits, dial.bits, panel.setting) == (4, 4, 4)

    @pytest.mark.parametrize("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
    @pytest.mark.parametrize("panel_first", [True, False])
    def test_copies_look_at_the_copy(self, copied, panel_first):
        panel = Panel(4)
        dial = panel.dial("a")
        panel.switch(Assignment(4, {"a": (2, 2)}))
        pair = copied((panel, dial) if panel_first else (dial, panel))
        other, other_dial = pair if panel_first else pair[::-1]
        assert other_dial is other.dial("a") and other_dial.panel is other and other is not panel
        panel.switch(8)
        assert (other.bits, other_dial.bits) == (4, 2)


@pytest.mark.parametrize(("taps", "exact"), [(21931, True), (21932, False)])
def test_exact_sums_end_where_fp32_does(taps, exact):
    assert sums_are_exact(taps, 3, 255) is exact
    assert (np.float32(taps * 3 * 255) + np.float32(1) == taps * 3 * 255 + 1) or not exact
