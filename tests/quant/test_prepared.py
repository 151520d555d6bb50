"""Layers copied from ones that were made before, beside layers that are made where they stand."""

import pytest
import torch
from brevitas.inject.enum import FloatToIntImplType
from brevitas.nn import QuantConv2d, QuantIdentity
from torch import nn

from brevitas_multiquant.core.grids import ODD
from brevitas_multiquant.core.panel import Panel
from brevitas_multiquant.quant import WeightPerTensorLearnedRange
from brevitas_multiquant.quant.layers import code_layer
from brevitas_multiquant.quant.plain import IntWeightConst, plain_layer
from brevitas_multiquant.quant.prepared import prepared
from brevitas_multiquant.quant.ranges import WeightRange

X = torch.linspace(-2, 3, 32).reshape(1, 2, 4, 4)


def test_a_layer_is_as_one_that_is_made_where_it_is_asked_for():
    before = torch.random.get_rng_state()
    with torch.device("meta"):
        assert prepared(QuantIdentity, bit_width=3).act_quant._zero_hw_sentinel.value.is_meta
    again = prepared(QuantIdentity, bit_width=3)
    assert not again.act_quant._zero_hw_sentinel.value.is_meta
    assert again.act_quant.tracked_module_list == [again]
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(again.eval()(X), QuantIdentity(bit_width=3).eval()(X))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_layer_of_codes_equals_one_of_an_injector_that_is_not_known(dtype):
    conv = nn.Conv2d(2, 4, 3).to(dtype)
    injector = WeightPerTensorLearnedRange.let(weight_format=ODD)
    fast, slow = (code_layer(conv, Panel(4), weights) for weights in (ODD, injector))
    assert fast.state_dict().keys() == slow.state_dict().keys()
    pairs = zip(fast.state_dict().values(), slow.state_dict().values(), strict=True)
    assert all(one.dtype == other.dtype and torch.equal(one, other) for one, other in pairs)
    assert torch.equal(fast.quant_weight(), slow.quant_weight())


def test_two_layers_share_nothing():
    one, other = (code_layer(nn.Conv2d(2, 4, 3), Panel(4)) for _ in range(2))
    owned = {tensor.data_ptr() for tensor in (*one.parameters(), *one.buffers())}
    assert owned.isdisjoint(t.data_ptr() for t in (*other.parameters(), *other.buffers()))


def test_a_plain_layer_equals_one_that_brevitas_injected_for_its_weight():
    integers = torch.randint(-7, 8, (4, 2, 3, 3)).double()
    fast = plain_layer(nn.Conv2d(2, 4, 3, bias=False).double(), integers, 0.5, 4, 7)[0]
    slow = QuantConv2d(2, 4, 3, bias=False, weight_quant=IntWeightConst, weight_bit_width=4,
                       weight_narrow_range=True, weight_scaling_init=7.0)  # fmt: skip
    slow.weight = nn.Parameter(integers, requires_grad=False)
    assert torch.equal(fast.quant_weight().value, slow.quant_weight().value)
    assert torch.equal(fast.quant_weight().value, integers)
    assert torch.equal(fast(X.double()), slow(X.double()))


@pytest.mark.parametrize(
    "arguments",
    [
        {"bit_width": 4, "float_to_int_impl_type": FloatToIntImplType.FLOOR},
        {"bit_width": 4, "float_to_int_impl_type": FloatToIntImplType.FLOOR.value},
    ],
    ids=["no hash", "hash"],
)
def test_arguments_with_and_without_a_hash(arguments):
    fast, slow = prepared(QuantIdentity, **arguments), QuantIdentity(**arguments)
    assert torch.equal(fast.train()(X), slow.train()(X))
    assert torch.equal(fast.eval()(X), slow.eval()(X))


def test_equal_numbers_of_two_types_are_two_layers():
    prepared(QuantIdentity, bit_width=4)
    with pytest.raises(AssertionError):  # of Brevitas, which wants an int
        prepared(QuantIdentity, bit_width=4.0)


def test_an_injector_of_ones_own_is_injected_for_each_layer():
    made = []

    class Counting(WeightRange):
        """A range that counts how often it is made."""

        def __new__(cls, *_, **__):
            made.append(cls)
            return super().__new__(cls)

    own = WeightPerTensorLearnedRange.let(range_impl=Counting)
    for _ in range(2):
        code_layer(nn.Conv2d(2, 4, 3), Panel(4), own)
    assert len(made) == 2


def test_a_convolution_whose_numbers_are_in_lists():
    conv = nn.Conv2d(2, 4, 3)
    conv.dilation = [2, 2]
    assert code_layer(conv, Panel(4)).dilation in ([2, 2], (2, 2))
