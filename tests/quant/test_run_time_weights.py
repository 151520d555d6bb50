"""Weights whose bit-width is chosen while a layer runs, and ranges for each output channel."""

import copy
import pickle

import pytest
import torch
from brevitas.nn import QuantConv1d, QuantConv2d, QuantLinear
from functorch.compile import make_boxed_func
from torch._dynamo.backends.common import aot_autograd

from brevitas_multiquant.core.clip_quantize import quantize_weight
from brevitas_multiquant.core.grids import FAMILIES, ODD, centered, modified, odd, symmetric
from brevitas_multiquant.errors import BitWidthError, ConfigError
from brevitas_multiquant.quant import WeightAtRunTimeLearnedRange, WeightPerTensorLearnedRange
from brevitas_multiquant.quant.ranges import WeightRange, weight_bounds

BITS = range(2, 9)


@pytest.fixture(autouse=True)
def _fresh():
    torch._dynamo.reset()
    torch.manual_seed(0)
    yield
    torch._dynamo.reset()


def at_run_time(family="odd", per_channel=False):
    injector = WeightAtRunTimeLearnedRange.let(
        family=family, scaling_per_output_channel=per_channel
    )
    conv = QuantConv2d(3, 8, 3, weight_quant=injector)
    torch.nn.init.normal_(conv.weight)
    conv.quant_weight()  # takes its range
    return conv, conv.weight_quant.tensor_quant


def gradients(conv, run, x):
    conv.zero_grad()
    y = run(x)
    y.square().sum().backward()
    return [y.detach(), *(parameter.grad.clone() for parameter in conv.parameters())]


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_each_bit_width_has_the_codes_of_its_grid(family, per_channel):
    conv, quantizer = at_run_time(family, per_channel)
    bounds = quantizer.range_impl.lower, quantizer.range_impl.upper
    for bits in (*BITS, 2):
        quantizer.grid_impl.switch(bits)
        grid = FAMILIES[family](bits)
        quantized = conv.quant_weight()
        assert torch.equal(quantized.value, quantize_weight(conv.weight, *bounds, grid))
        assert quantized.bit_width.item() == grid.integer_bits
        assert quantizer.weight_format == grid
        x = torch.randn(2, 3, 6, 6)
        assert torch.equal(conv(x), torch.conv2d(x, quantized.value, conv.bias))


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_one_graph_for_all_bit_widths(family, per_channel):
    graphs = []

    def counting(kind):
        return lambda graph, _: graphs.append(kind) or make_boxed_func(graph.forward)

    backend = aot_autograd(fw_compiler=counting("forward"), bw_compiler=counting("backward"))
    conv, quantizer = at_run_time(family, per_channel)
    compiled, x = torch.compile(conv, backend=backend, fullgraph=True), torch.randn(2, 3, 6, 6)
    outputs = []
    for bits in (*BITS, 5, 2):
        quantizer.grid_impl.switch(bits)
        found, expected = gradients(conv, compiled, x), gradients(conv, conv, x)
        assert torch.equal(found[0], expected[0])
        for one, other in zip(found, expected, strict=True):
            # sums of a few hundred fp32 numbers in another order
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5 * float(other.abs().max()))
        outputs.append(found[0])
    assert graphs == ["forward", "backward"]
    assert len({output.sum().item() for output in outputs}) == len(BITS)


@pytest.mark.parametrize("family", [modified, centered])
def test_the_largest_bit_width_holds_the_others(family):
    conv, quantizer = at_run_time(family.__name__)
    places = {}
    for bits in BITS:
        quantizer.grid_impl.switch(bits)
        grid = quantizer.weight_format
        places[bits] = ((conv.quant_weight().value - grid.offset) / grid.step).long()
    assert places[8].unique().numel() > 64
    for bits in BITS:
        assert torch.equal(places[bits], places[8] >> (8 - bits))


def test_a_switch_between_forward_and_backward():
    """Each backward is of the bit-width that its forward ran at, eager and compiled."""
    conv, quantizer = at_run_time()
    x = torch.randn(1, 3, 4, 4)
    for run in (conv, torch.compile(conv, backend="aot_eager", fullgraph=True)):
        alone, outputs = [], []
        for bits in (8, 2):
            quantizer.grid_impl.switch(bits)
            alone.append(torch.autograd.grad(run(x).square().sum(), conv.weight)[0])
        for bits in (8, 2):
            quantizer.grid_impl.switch(bits)
            outputs.append(run(x).square().sum())
        for output, expected in zip(outputs, alone, strict=True):
            assert torch.equal(torch.autograd.grad(output, conv.weight)[0], expected)


def test_the_state_has_the_keys_that_it_has_without():
    plain = QuantConv2d(3, 8, 3, weight_quant=WeightPerTensorLearnedRange)
    conv, quantizer = at_run_time()
    assert list(conv.state_dict()) == list(plain.state_dict())
    quantizer.grid_impl.switch(3)
    assert plain.load_state_dict(conv.state_dict())
    for other in (copy.deepcopy(conv), pickle.loads(pickle.dumps(quantizer))):
        grid = getattr(other, "weight_quant", other)
        assert getattr(grid, "tensor_quant", grid).weight_format == odd(3)
    assert torch.equal(conv.half().weight_quant.tensor_quant.grid_impl.row, quantizer.grid_impl.row)
    assert quantizer.grid_impl.row.dtype == torch.int64  # half precision has no 2**16 - 1


def test_names_and_bit_widths_that_are_none():
    quantizer = at_run_time()[1]
    with pytest.raises(BitWidthError, match=r"weights: expected bits out of \[2, 3, .* 8\], got"):
        quantizer.grid_impl.switch(9)
    assert quantizer.weight_format == odd(8)
    with pytest.raises(ConfigError, match=r"family: expected one of \['odd', .*, got 'even'"):
        at_run_time("even")


@pytest.mark.parametrize("grid", [ODD, symmetric(4), centered(6)], ids=str)
@pytest.mark.parametrize(
    ("kind", "options", "shape"),
    [
        (QuantConv2d, (4, 6, 3), (6, 1, 1, 1)),
        (QuantConv1d, (4, 6, 3), (6, 1, 1)),
        (QuantLinear, (4, 6, True), (6, 1)),
    ],
)
def test_a_range_for_each_output_channel(kind, options, shape, grid):
    injector = WeightPerTensorLearnedRange.let(weight_format=grid, scaling_per_output_channel=True)
    layer = kind(*options, weight_quant=injector)
    with torch.no_grad():
        layer.weight.mul_(torch.logspace(-3, 3, 6).view(shape))
    codes = layer.quant_weight().value
    learned = layer.weight_quant.tensor_quant.range_impl
    assert learned.lower.shape == learned.upper.shape == shape
    for channel, weight in enumerate(layer.weight):
        bounds = weight_bounds(weight[None], grid)
        for own, bound in zip((learned.lower, learned.upper), bounds, strict=True):
            # a deviation of a dozen numbers in another order
            torch.testing.assert_close(own[channel].view(()), bound, rtol=1e-6, atol=0)
        own = learned.lower[channel], learned.upper[channel]
        assert torch.equal(codes[channel], quantize_weight(weight, *own, grid))
    codes.square().sum().backward()
    assert learned.lower.grad.shape == shape and learned.lower.grad.abs().min() > 0


def test_ranges_of_channels_load_and_start_like_others():
    learned = WeightRange(scaling_shape=(3, 1))
    assert not learned.ready
    learned(torch.randn(3, 20))
    state = learned.state_dict()
    assert {name: value.shape for name, value in state.items()} == {
        "lower": (3, 1),
        "upper": (3, 1),
        "observed": (),
    }
    other = WeightRange(scaling_shape=(3, 1))
    other.load_state_dict(state)
    assert other.ready and torch.equal(other.upper, learned.upper)
