"""Interpolation against a slow form of itself, numbers against tensors, gradients by hand."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from brevitas_multiquant.cost.luts import (
    ConvolutionShape,
    Resources,
    ResourceTable,
    fold,
    tabulate,
    total,
)
from brevitas_multiquant.errors import HardwareError

SHAPE = ConvolutionShape(16, 32, (16, 16), (3, 3), padding=(1, 1))
WEIGHTS, ACTIVATIONS = (2, 3, 4, 6, 8), (2, 3, 4, 8)


def layers(weight_bits, activation_bits):
    return SHAPE.layers(weight_bits, activation_bits, activation_bits)


TABLE = tabulate(layers, WEIGHTS, ACTIVATIONS, target=20000)
bits = st.floats(2, 8)


def slow(weight_bits, activation_bits):
    """LUTs from the four entries around, one line at a time."""

    def around(axis, value):
        right = next(index for index in range(1, len(axis)) if value <= axis[index])
        return right - 1, right, (value - axis[right - 1]) / (axis[right] - axis[right - 1])

    i, j, down = around(WEIGHTS, weight_bits)
    k, n, across = around(ACTIVATIONS, activation_bits)
    left = (1 - down) * TABLE.entries[i][k].luts + down * TABLE.entries[j][k].luts
    right = (1 - down) * TABLE.entries[i][n].luts + down * TABLE.entries[j][n].luts
    return (1 - across) * left + across * right


@pytest.mark.parametrize("weight_bits", WEIGHTS)
@pytest.mark.parametrize("activation_bits", ACTIVATIONS)
def test_entries_are_the_rules(weight_bits, activation_bits):
    assert TABLE.at(weight_bits, activation_bits) == total(
        fold(layers(weight_bits, activation_bits), 20000)
    )


@given(bits, bits)
def test_between_entries(weight_bits, activation_bits):
    # two orders of the same few fp64 operations
    assert math.isclose(
        TABLE.at(weight_bits, activation_bits).luts,
        slow(weight_bits, activation_bits),
        rel_tol=1e-12,
    )


@given(st.lists(st.tuples(bits, bits), min_size=1, max_size=5))
def test_tensors_give_what_numbers_give(pairs):
    weight_bits, activation_bits = torch.tensor(pairs, dtype=torch.float64).unbind(1)
    found = TABLE.at(weight_bits, activation_bits)
    for name in ("luts", "bram18", "dsp", "uram"):
        expected = [getattr(TABLE.at(*pair), name) for pair in pairs]
        # numpy and torch add the same fp64 numbers in different orders
        assert getattr(found, name).tolist() == pytest.approx(expected, rel=1e-12, abs=1e-9)


def test_a_tensor_beside_a_number_and_shapes_that_broadcast():
    some = torch.tensor([2.0, 3.5, 8.0], dtype=torch.float64)
    along, across = TABLE.at(some, 3).luts.tolist(), TABLE.at(3, some).luts.tolist()
    assert along == pytest.approx([TABLE.at(float(one), 3).luts for one in some])
    assert across == pytest.approx([TABLE.at(3, float(one)).luts for one in some])
    assert TABLE.at(some[:, None], some[None]).luts.shape == (3, 3)
    assert TABLE.at(torch.tensor(3.5), torch.tensor(3.5)).luts.shape == ()


def test_two_entries_are_enough():
    table = tabulate(layers, (2, 4), (2, 8), target=20000)
    some = torch.tensor([2.0, 3.0, 4.0], dtype=torch.float64)
    expected = [table.at(one, one).luts for one in (2, 3, 4)]
    assert table.at(some, some).luts.tolist() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("at", "left", "right"), [(2.0, 2, 3), (2.5, 2, 3), (3.0, 3, 4), (5.0, 4, 6), (8.0, 6, 8)]
)
def test_slopes_are_those_to_the_right_and_at_the_end_to_the_left(at, left, right):
    weight_bits = torch.tensor(at, dtype=torch.float64, requires_grad=True)
    TABLE.at(weight_bits, 3).luts.backward()
    rise = TABLE.at(right, 3).luts - TABLE.at(left, 3).luts
    assert weight_bits.grad.item() == pytest.approx(rise / (right - left), rel=1e-12)


def test_slope_in_activation_bits_against_finite_differences():
    activation_bits = torch.tensor(5.0, dtype=torch.float64, requires_grad=True)
    TABLE.at(2.75, activation_bits).luts.backward()
    difference = TABLE.at(2.75, 5.5).luts - TABLE.at(2.75, 4.5).luts
    assert activation_bits.grad.item() == pytest.approx(difference, rel=1e-12)


def test_a_network_is_the_sum_of_its_tables():
    weight_bits = torch.tensor([2.5, 6.5], dtype=torch.float64, requires_grad=True)
    network = Resources.sum(TABLE.at(one, 4) for one in weight_bits)
    network.priced(dsp=55).backward()
    prices = {bits: TABLE.at(bits, 4).priced(dsp=55) for bits in WEIGHTS}
    slopes = [prices[3] - prices[2], (prices[8] - prices[6]) / 2]
    assert weight_bits.grad.tolist() == pytest.approx(slopes, rel=1e-12)


def test_from_luts_to_dsps():
    """At four bits on both sides the multipliers move: LUTs fall, DSPs come."""
    assert TABLE.at(3, 4).dsp == 0 < TABLE.at(3.5, 4).dsp < TABLE.at(4, 4).dsp
    assert TABLE.at(3, 4).luts > TABLE.at(3.5, 4).luts > TABLE.at(4, 4).luts


def test_one_graph_for_all_bit_widths():
    prices = torch.compile(
        lambda w, a: TABLE.at(w, a).priced(dsp=55), backend="eager", fullgraph=True
    )
    for pair in ((2.0, 2.0), (3.5, 7.0), (8.0, 8.0)):
        found = prices(*(torch.tensor(one, dtype=torch.float64) for one in pair))
        assert found.item() == pytest.approx(TABLE.at(*pair).priced(dsp=55), rel=1e-12)


class TestRefused:
    @pytest.mark.parametrize(("pair", "name"), [((1.9, 3), "weight"), ((3, 8.1), "activation")])
    def test_numbers_outside(self, pair, name):
        with pytest.raises(HardwareError, match=f"{name}_bits: expected 2 to 8, got"):
            TABLE.at(*pair)
        with pytest.raises(HardwareError, match=f"{name}_bits: expected 2 to 8, got"):
            TABLE.at(*map(np.float32, pair))

    def test_nan(self):
        with pytest.raises(HardwareError, match="expected 2 to 8, got nan"):
            TABLE.at(math.nan, 3)

    @pytest.mark.parametrize("axis", [(), (2,), (3, 2), (2, 2)])
    def test_axes(self, axis):
        with pytest.raises(HardwareError, match="activation_bits: expected two or more, ascending"):
            ResourceTable((2, 3), axis, ((Resources(),) * len(axis),) * 2)

    def test_entries(self):
        with pytest.raises(HardwareError, match=r"entries: expected 2 rows of 3, got \(2, 1, 3\)"):
            ResourceTable((2, 3), (2, 3, 4), ((Resources(),) * 3, (Resources(),)))

    def test_one_candidate(self):
        with pytest.raises(HardwareError, match="weight_bits: expected two or more"):
            tabulate(layers, (4,), (2, 4), target=20000)

    def test_depthwise_with_other_outputs(self):
        with pytest.raises(HardwareError, match="outputs: expected 8, as many as inputs"):
            ConvolutionShape(8, 16, depthwise=True)


def test_layers_of_shapes():
    strided = ConvolutionShape(8, 16, (8, 8), stride=(2, 2)).layers(4, 4)
    assert [type(one).__name__ for one in strided] == ["Window", "MatrixProduct"]
    assert strided[1].positions == 16
    depthwise = ConvolutionShape(8, 8, (8, 8), (3, 3), padding=(1, 1), depthwise=True)
    window, product = depthwise.layers(4, 4)[1:]
    assert window.depthwise and product.fan_in == 9 and product.positions == 64
    assert depthwise.layers(4, 4, accumulator_bits=7, threshold_bits=6)[-1].accumulator_bits == 7
