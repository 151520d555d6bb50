"""The clip's mask where threads count subnormal numbers as 0: its bounds stay within it."""

import subprocess
import sys

import pytest
import torch

from brevitas_multiquant.core.clip_quantize import (
    guarded_upper,
    quantize_activation,
    quantize_weight,
)
from brevitas_multiquant.core.grids import WEIGHT_FORMATS
from tests import reference

SUBNORMAL = {torch.float32: 1e-40, torch.float64: 1e-310}
RANGES = {
    "zero_lower": (0.0, 1.0),
    "zero_upper": (-1.0, 0.0),
    "negative": (-2.0, -0.5),
    "signed": (-0.7, 1.3),
    "tiny_lower": ("subnormal", 1.0),
    "tiny_negative_lower": ("-subnormal", 1.0),
    "tiny_upper": (-1.0, "subnormal"),
    "smallest_lower": ("tiny", 1.0),
    "smallest_upper": (-1.0, "-tiny"),
}


@pytest.fixture(params=[False, True], ids=["kept", "flushed"])
def flushed(request):
    """Whether this thread counts subnormal numbers as 0."""
    if request.param and not torch.set_flush_denormal(True):
        pytest.skip("this processor cannot flush subnormal numbers")
    yield request.param
    torch.set_flush_denormal(False)


def number(value, dtype):
    names = {"subnormal": SUBNORMAL[dtype], "tiny": torch.finfo(dtype).tiny}
    if not isinstance(value, str):
        return value
    return -names[value[1:]] if value[0] == "-" else names[value]


def beside(bound):
    """A bound, and the numbers beside it; 0 and the smallest normal ones beside a subnormal."""
    smallest = torch.finfo(bound.dtype).tiny
    if abs(bound.item()) < smallest:
        return bound.new_tensor([0.0, -0.0, smallest, -smallest, bound.item()])
    infinity = bound.new_tensor(float("inf"))
    around = [torch.nextafter(bound, -infinity), bound, torch.nextafter(bound, infinity)]
    return torch.stack([n if abs(n.item()) >= smallest else torch.zeros_like(n) for n in around])


def leaves(name, dtype):
    lower, upper = (torch.tensor(number(v, dtype), dtype=dtype) for v in RANGES[name])
    inner = lower + (upper - lower) * torch.tensor([0.1, 0.45, 0.8], dtype=dtype)
    x = torch.cat([beside(lower), beside(upper), inner, lower[None] - 1, upper[None] + 1])
    return [t.clone().requires_grad_() for t in (x, lower, upper)]


def expected_gradients(x, lower, upper, grad, gain):
    """The definition; a subnormal number counts as 0."""
    smallest = torch.finfo(x.dtype).tiny
    zeros = torch.zeros((), dtype=x.dtype)
    x, low, high = (torch.where(t.abs() < smallest, zeros, t) for t in (x, lower, upper))
    passed = torch.where((x >= low) & (x <= high), grad, zeros)
    width = guarded_upper(lower, upper) - lower
    position = (passed * (x - lower)).sum() / width
    return passed * gain / width, (position - passed.sum()) * gain / width, -gain * position / width


@pytest.mark.parametrize("dtype", SUBNORMAL)
@pytest.mark.parametrize("name", RANGES)
@pytest.mark.parametrize("form", [None, *WEIGHT_FORMATS])
def test_bounds_are_within_the_range(flushed, name, dtype, form):
    x, lower, upper = leaves(name, dtype)
    grad = torch.linspace(0.5, 1.5, len(x), dtype=dtype)
    if form is None:
        codes, gain = quantize_activation(x, lower, upper, 4), 15
    else:
        codes = quantize_weight(x, lower, upper, WEIGHT_FORMATS[form])
        gain = WEIGHT_FORMATS[form].step * WEIGHT_FORMATS[form].levels
    codes.backward(grad)
    with torch.no_grad():
        expected = expected_gradients(x, lower, upper, grad, gain)
    assert torch.equal(x.grad == 0, expected[0] == 0)
    # sums of a dozen numbers of order one in another order
    relative = {torch.float32: 1e-5, torch.float64: 1e-13}[dtype]
    for found, other in zip((x.grad, lower.grad, upper.grad), expected, strict=True):
        torch.testing.assert_close(found, other, rtol=relative, atol=relative * gain)


def test_zeros_of_a_relu_against_autograd(flushed):
    """Half of all activations are exactly l = 0."""
    results = []
    for function in (quantize_activation, reference.activation_values):
        x = torch.tensor([0.0, 0.0, 0.3, 0.9], requires_grad=True)
        lower, upper = (torch.tensor(v, requires_grad=True) for v in (0.0, 1.0))
        factor = 1 if function is reference.activation_values else 15
        (function(x, lower, upper, 4) / factor).sum().backward()
        results.append([x.grad, lower.grad, upper.grad])
    for found, other in zip(*results, strict=True):
        torch.testing.assert_close(found, other, rtol=1e-5, atol=0.0)  # fp32
    assert results[0][0].tolist() == [1.0] * 4


IN_THREADS = """
import torch
from brevitas_multiquant.core.clip_quantize import quantize_activation
torch.set_num_threads(2)
torch.set_flush_denormal({first})
for flushed in ({first}, not {first}):
    torch.set_flush_denormal(flushed)
    x = torch.zeros(1_000_000, requires_grad=True)  # large enough for both threads
    lower, upper = torch.tensor(0.0), torch.tensor(1.0)
    quantize_activation(x, lower, upper, 4).sum().backward()
    print(x.grad.count_nonzero().item())
"""


@pytest.mark.parametrize("first", [True, False])
def test_threads_that_do_not_agree(first):
    """Worker threads keep what the first forward found them with, whatever is set later."""
    code = ["-W", "ignore", "-c", IN_THREADS.format(first=first)]
    run = subprocess.run([sys.executable, *code], capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["1000000", "1000000"]
