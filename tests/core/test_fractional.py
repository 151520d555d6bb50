"""Real-valued bit-widths: values and gradients against autograd, differences, plain quantizers."""

from functools import partial

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

from brevitas_multiquant.core import fractional
from brevitas_multiquant.core.clip_gradient import guarded_upper
from brevitas_multiquant.core.clip_quantize import quantize_activation, quantize_weight
from brevitas_multiquant.core.fractional import fractional_activation, fractional_weight
from brevitas_multiquant.core.grids import odd

MOST = 8
BITS = [0.0, 0.4, 1.0, 2.0, 2.3, 3.5, 4.0, 5.71, 7.99, 8.0]
KINDS = {"activation": (fractional_activation, 1.0, 0.0), "weight": (fractional_weight, 2.0, 1.0)}


def oracle(x, lower, upper, bits, gain, offset):
    """The formula, with torch's own derivatives; straight through rounding and, inside, the clip.

    At 0 bits the value is 0.
    """
    below = bits.detach().floor().clamp(max=MOST - 1)
    share = bits - below
    position = (x - lower) / (upper - lower)
    inside = (x >= lower) & (x <= upper)
    clipped = torch.where(inside, position, position.detach().clamp(0, 1))

    def value(b):
        n = (2**b - 1).clamp(min=1)
        rounded = clipped + (torch.round(n * clipped.detach()) / n - clipped.detach())
        return torch.where(b > 0, gain * rounded - offset, 0.0 * clipped)

    return (1 - share) * value(below) + share * value(below + 1)


def gradients(function, tensors, grad):
    leaves = [tensor.detach().clone().requires_grad_() for tensor in tensors]
    out = function(*leaves)
    return out.detach(), torch.autograd.grad(out, leaves, grad)


def scattered(lower, upper):
    """Values inside, outside, and on both bounds."""
    x = torch.randn(4, 8, 5, 5, dtype=torch.float64) * (upper - lower) + (upper + lower) / 2
    x[0, 0, 0, :2] = torch.tensor([lower, upper], dtype=torch.float64)
    return x


@pytest.fixture(params=["few passes", "tensors"])
def form(request, monkeypatch):
    if request.param == "tensors":
        monkeypatch.setattr(fractional, "is_one_range", lambda *_: False)
    return request.param


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize(("lower", "upper"), [(-0.7, 1.3), (0.0, 1.0), (30.0, 31.0)])
def test_closed_form_against_autograd(form, kind, bits, lower, upper):
    function, gain, offset = KINDS[kind]
    x = scattered(lower, upper)
    tensors = [x, *(torch.tensor(t, dtype=torch.float64) for t in (lower, upper, bits))]
    grad = torch.randn_like(x)
    ours = gradients(partial(function, most=MOST), tensors, grad)
    theirs = gradients(partial(oracle, gain=gain, offset=offset), tensors, grad)
    assert (ours[0] - theirs[0]).abs().max() < 1e-14  # two roundings of numbers up to 1
    for own, reference in zip(ours[1], theirs[1], strict=True):
        # sums of 800 terms in another order; around 30 positions lose 5 of 53 bits
        assert (own - reference).abs().max() < 1e-10


@pytest.mark.parametrize("ranges", ["tensor", "channel"])
def test_bits_per_output_channel_against_autograd(ranges):
    weight = torch.randn(7, 3, 3, 3, dtype=torch.float64)
    column = (-1, 1, 1, 1)
    bits = torch.tensor([0.0, 0.6, 2.0, 2.5, 3.0, 7.2, 8.0], dtype=torch.float64).view(column)
    upper = torch.full((7, 1, 1, 1) if ranges == "channel" else (), 1.1, dtype=torch.float64)
    grad = torch.randn_like(weight)
    tensors = [weight, -upper, upper, bits]
    ours = gradients(partial(fractional_weight, most=MOST), tensors, grad)
    theirs = gradients(partial(oracle, gain=2.0, offset=1.0), tensors, grad)
    assert (ours[0] - theirs[0]).abs().max() < 1e-14
    for own, reference in zip(ours[1], theirs[1], strict=True):
        assert own.shape == reference.shape and (own - reference).abs().max() < 1e-10
    assert not ours[0][0].any() and not ours[1][0][0].any()  # 0 bits: nothing out, nothing back
    assert ours[1][3][0].abs() > 0  # but its bits have a gradient: it can come back


@pytest.mark.parametrize("bits", [0.4, 2.3, 3.5, 5.7, 7.99])
def test_gradient_of_bits_against_differences(form, bits):
    """Between whole numbers values are linear in the bits."""
    x, grad = torch.randn(1000, dtype=torch.float64), torch.randn(1000, dtype=torch.float64)
    bounds = torch.tensor(0.0, dtype=torch.float64), torch.tensor(1.5, dtype=torch.float64)

    def loss(b: float) -> Tensor:
        return fractional_activation(x, *bounds, torch.tensor(b, dtype=torch.float64), MOST) @ grad

    _, (*_, ours) = gradients(
        partial(fractional_activation, most=MOST),
        [x, *bounds, torch.tensor(bits, dtype=torch.float64)],
        grad,
    )
    step = 1e-3
    # a sum of 1000 numbers up to 3, over the step: 1e-13 / 1e-3
    assert ours.item() == pytest.approx(
        (loss(bits + step) - loss(bits - step)).item() / (2 * step), abs=1e-9
    )


def test_a_gradient_at_whole_numbers_is_to_the_right_and_at_the_last_to_the_left(form):
    x, grad = torch.randn(1000, dtype=torch.float64), torch.randn(1000, dtype=torch.float64)
    bounds = torch.tensor(0.0, dtype=torch.float64), torch.tensor(1.5, dtype=torch.float64)

    def loss(b: float) -> float:
        values = fractional_activation(x, *bounds, torch.tensor(b, dtype=torch.float64), MOST)
        return (values @ grad).item()

    for bits, step in ((0.0, 1e-3), (3.0, 1e-3), (8.0, -1e-3)):
        _, (*_, ours) = gradients(
            partial(fractional_activation, most=MOST),
            [x, *bounds, torch.tensor(bits, dtype=torch.float64)],
            grad,
        )
        assert ours.item() == pytest.approx((loss(bits + step) - loss(bits)) / step, abs=1e-9)


def with_ties(lower, upper, bits):
    """Many values, the middle between any two levels among them."""
    x, n = torch.randn(50000), 2**bits - 1
    x[:n] = (torch.arange(n) + 0.5) / n * (upper - lower) + lower
    return x


@pytest.mark.parametrize("bits", range(1, MOST + 1))
def test_whole_bits_are_the_plain_quantizer_to_the_bit(form, bits):
    lower, upper, n = torch.tensor(-0.31), torch.tensor(1.7), 2**bits - 1
    x = with_ties(lower, upper, bits)
    whole = torch.tensor(float(bits))
    values = fractional_activation(x, lower, upper, whole, MOST)
    assert torch.equal(values, quantize_activation(x, lower, upper, bits) * (1 / n))
    values = fractional_weight(x, lower, upper, whole, MOST)
    assert torch.equal(values, quantize_weight(x, lower, upper, odd(bits)) * (1 / n))


def test_channels_of_whole_bits_are_the_plain_quantizer_to_the_bit():
    lower, upper = torch.tensor(-1.0), torch.tensor(1.2)
    weight = torch.stack([with_ties(lower, upper, bits) for bits in range(1, MOST + 1)])
    bits = torch.arange(1.0, MOST + 1).view(-1, 1)
    values = fractional_weight(weight, lower, upper, bits, MOST)
    for own, row, b in zip(values, weight, range(1, MOST + 1), strict=True):
        codes = quantize_weight(row, lower, upper, odd(b))
        assert torch.equal(own, codes * (1 / (2**b - 1)))


def test_neither_form_differs_by_more_than_a_rounding(monkeypatch):
    x, bounds = torch.randn(3000), (torch.tensor(-0.5), torch.tensor(1.5))
    tensors, grad = [x, *bounds, torch.tensor(3.4)], torch.randn(3000)
    function = partial(fractional_weight, most=MOST)
    few = gradients(function, tensors, grad)
    monkeypatch.setattr(fractional, "is_one_range", lambda *_: False)
    many = gradients(function, tensors, grad)
    assert (
        few[0] - many[0]
    ).abs().max() <= 2**-22  # two units of the last place of numbers below 2
    for one, other in zip(few[1], many[1], strict=True):
        # sums of 3000 numbers of size 1 in fp32, in another order
        assert (one - other).abs().max() < 2e-3


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precisions_are_quantized_in_fp32(dtype):
    x = torch.randn(500).to(dtype).requires_grad_()
    bounds, bits = (torch.tensor(0.0), torch.tensor(1.5)), torch.tensor(7.5, requires_grad=True)
    values = fractional_activation(x, *bounds, bits, MOST)
    wide = fractional_activation(x.detach().float(), *bounds, bits.detach(), MOST)
    assert values.dtype == dtype and torch.equal(values.detach(), wide.to(dtype))
    values.sum().backward()
    assert x.grad.dtype == dtype and bits.grad.dtype == torch.float32


def test_a_narrow_range_is_guarded():
    lower, upper = torch.tensor(1.0), torch.tensor(0.0)
    values = fractional_activation(torch.randn(9), lower, upper, torch.tensor(2.5), MOST)
    assert torch.isfinite(values).all() and guarded_upper(lower, upper) > lower


def test_one_graph_for_all_bits():
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")

    @torch.compile(backend=counter, fullgraph=True)
    def run(x, lower, upper, bits):
        return fractional_activation(x, lower, upper, bits, MOST)

    x, grad = torch.randn(4, 3, 5, 5), torch.randn(4, 3, 5, 5)
    bounds = torch.tensor(-0.2), torch.tensor(1.4)
    for bits in torch.linspace(2, 8, 13):
        tensors = [x, *bounds, bits]
        eager = gradients(partial(fractional_activation, most=MOST), tensors, grad)
        compiled = gradients(run, tensors, grad)
        assert (eager[0] - compiled[0]).abs().max() <= 2**-22
        for one, other in zip(eager[1], compiled[1], strict=True):
            assert (one - other).abs().max() < 1e-3  # as between the two forms
    assert counter.frame_count == 1
    torch._dynamo.reset()
