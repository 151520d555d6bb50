"""Rounded weights wait for the backward as bytes: the same gradients, less memory."""

import pytest
import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.profiler import ProfilerActivity, profile
from torch.utils.checkpoint import checkpoint

from brevitas_multiquant.core.grids import integer, odd
from brevitas_multiquant.core.panel import Panel
from brevitas_multiquant.quant import kept_weights, layers

LAYERS = {
    "conv": (lambda: nn.Conv2d(64, 64, 3, padding=1), (1, 64, 6, 6)),
    "grouped": (lambda: nn.Conv2d(64, 128, 3, groups=2, bias=False), (1, 64, 6, 6)),
    "conv1d": (lambda: nn.Conv1d(64, 64, 3), (1, 64, 9)),
    "linear": (lambda: nn.Linear(64, 64), (2, 64)),
}


def layer_and_codes(name):
    """A layer whose weights outweigh its input, and codes of 4 bits that want a gradient."""
    make, shape = LAYERS[name]
    layer = layers.code_layer(make(), Panel(4)).train()
    return layer, torch.randint(0, 16, shape).float().requires_grad_()


def gradients(layer, codes):
    """Of the codes and of every parameter."""
    return torch.autograd.grad(layer(codes).square().sum(), [codes, *layer.parameters()])


def kept_bytes(layer, codes):
    """What the allocator holds more after a forward than before it, its output included."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        output = layer(codes)
    assert output.requires_grad
    return sum(event.self_cpu_memory_usage for event in profiler.key_averages())


@pytest.fixture
def as_floats(monkeypatch):
    """A function that from then on lets the framework keep what it always keeps."""
    return lambda: monkeypatch.setattr(kept_weights, "_others_decide", lambda: True)


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("autocast", [False, True])
def test_gradients_are_those_of_weights_kept_as_floats(name, autocast, as_floats):
    torch.manual_seed(0)
    layer, codes = layer_and_codes(name)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        found = gradients(layer, codes)
        as_floats()
        expected = gradients(layer, codes)
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("bits", [7, 8, 9, 16])
@pytest.mark.parametrize("family", [odd, integer])
def test_integers_too_large_for_a_byte(family, bits, as_floats):
    layer = layers.code_layer(nn.Linear(64, 64), Panel(4), family(bits)).train()
    nn.init.normal_(layer.weight, std=10 * layer.weight.std().item())  # many at the ends
    codes = torch.randint(0, 16, (2, 64)).float().requires_grad_()
    found = gradients(layer, codes)
    as_floats()
    for one, other in zip(found, gradients(layer, codes), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("name", ["conv", "linear"])
def test_three_of_four_bytes_are_saved(name, as_floats):
    layer, codes = layer_and_codes(name)
    as_bytes = kept_bytes(layer, codes)
    as_floats()
    assert kept_bytes(layer, codes) - as_bytes == 3 * layer.weight.numel()


def test_a_weight_that_the_input_outweighs_is_left_alone(monkeypatch):
    layer, _ = layer_and_codes("conv")
    codes = torch.zeros(16, 64, 6, 6)  # 36,864 numbers, as the weight has
    monkeypatch.setattr(kept_weights, "_codes_kept", None)  # would fail if called
    layer(codes)


def test_hooks_around_the_network_still_see_every_tensor():
    """A checkpoint or an offload to the host that could not would keep more, not less."""
    layer, codes = layer_and_codes("conv")
    seen = []
    with saved_tensors_hooks(lambda tensor: seen.append(tensor) or tensor, lambda kept: kept):
        layer(codes)
    assert any(tensor.dtype == torch.float32 and tensor.shape == codes.shape for tensor in seen)
    assert not any(tensor.dtype == torch.int8 for tensor in seen)


def test_a_checkpoint_around_it_gives_the_same_gradients():
    layer, codes = layer_and_codes("conv")
    expected = gradients(layer, codes)
    output = checkpoint(layer, codes, use_reentrant=False)
    found = torch.autograd.grad(output.square().sum(), [codes, *layer.parameters()])
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)


def test_the_backward_can_run_twice():
    layer, codes = layer_and_codes("conv")
    loss = layer(codes).square().sum()
    first, second = (torch.autograd.grad(loss, codes, retain_graph=True) for _ in range(2))
    assert torch.equal(first[0], second[0])
