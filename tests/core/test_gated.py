"""Gates between bit-widths: the residuals of Bayesian Bits, autograd, plain quantizers."""

from functools import partial

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

from brevitas_multiquant.core import gated
from brevitas_multiquant.core.clip_quantize import quantize_activation, quantize_weight
from brevitas_multiquant.core.gated import gate_shares, gated_activation, gated_weight
from brevitas_multiquant.core.grids import odd

BITS = (2, 4, 8)
KINDS = {"activation": (gated_activation, 1.0, 0.0), "weight": (gated_weight, 2.0, 1.0)}
GATES = {"half open": (1.0, 0.7, 0.3), "pruning": (0.2, 0.5, 0.9), "shut": (1.0, 0.0, 0.4)}


def straight_through(x: Tensor) -> Tensor:
    return x + (x.round() - x).detach()


def residuals(x, lower, upper, gates, gain, offset):
    """The paper's decomposition, term by term: each step rounds what the coarser ones left."""
    inside = (x >= lower) & (x <= upper)
    place = (x - lower) / (upper - lower)
    place = torch.where(inside, place, place.detach().clamp(0, 1))
    step, coarser, terms = 1 / 3, torch.zeros_like(place), []
    for bits in BITS:
        if bits > 2:
            step = step / (2 ** (bits // 2) + 1)
        terms.append(step * straight_through((place - coarser) / step))
        coarser = coarser + terms[-1]
    total = torch.zeros_like(place)
    for gate, term in zip(reversed(gates), reversed(terms), strict=True):
        total = gate * (term + total)
    # weights lie around the middle of their range, which is what a pruned one is
    return gain * total - offset * gates[0]


def gradients(function, tensors, grad):
    leaves = [tensor.detach().clone().requires_grad_() for tensor in tensors]
    out = function(*leaves)
    return out.detach(), torch.autograd.grad(out, leaves, grad)


@pytest.fixture(params=["read", "tensors"])
def form(request, monkeypatch):
    """Whether single shares are read, and those that are 0 left out."""
    if request.param == "tensors":
        monkeypatch.setattr(gated, "reads_are_free", lambda _: False)
    return request.param


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("gates", GATES)
def test_residuals_and_their_gradients_against_autograd(form, kind, gates):
    function, gain, offset = KINDS[kind]
    x = torch.randn(4, 8, 5, 5, dtype=torch.float64)
    x[0, 0, 0, :2] = torch.tensor([-0.7, 1.3])
    of_gates = torch.tensor(GATES[gates], dtype=torch.float64)
    bounds = (torch.tensor(bound, dtype=torch.float64) for bound in (-0.7, 1.3))
    tensors, grad = [x, *bounds, of_gates], torch.randn_like(x)
    ours = gradients(lambda *t: function(*t[:3], gate_shares(t[3]), BITS), tensors, grad)
    theirs = gradients(partial(residuals, gain=gain, offset=offset), tensors, grad)
    assert (ours[0] - theirs[0]).abs().max() < 1e-14  # three roundings of numbers up to 1
    for own, reference in zip(ours[1][:3], theirs[1][:3], strict=True):
        assert (own - reference).abs().max() < 1e-10  # sums of 800 terms in another order
    # a gate that is shut is left out where it can be read: a hard one has no gradient
    live = of_gates > 0 if form == "read" else of_gates >= 0
    assert ((ours[1][3] - theirs[1][3])[live].abs() < 1e-10).all()


def test_a_gate_for_each_output_channel_against_autograd():
    weight = torch.randn(7, 3, 3, 3, dtype=torch.float64)
    kept = torch.linspace(0, 1, 7, dtype=torch.float64).view(-1, 1, 1, 1)
    of_tensor = torch.tensor([0.6, 0.3], dtype=torch.float64)
    upper, grad = torch.tensor(1.1, dtype=torch.float64), torch.randn_like(weight)

    def ours(x, low, high, first, others):
        gates = torch.cat([first[None], others.view(2, 1, 1, 1, 1).expand(2, 7, 1, 1, 1)])
        return gated_weight(x, low, high, gate_shares(gates), BITS)

    def theirs(x, low, high, first, others):
        return residuals(x, low, high, (first, *others), 2.0, 1.0)

    tensors = [weight, -upper, upper, kept, of_tensor]
    own, reference = (gradients(function, tensors, grad) for function in (ours, theirs))
    assert (own[0] - reference[0]).abs().max() < 1e-14
    for one, other in zip(own[1], reference[1], strict=True):
        assert one.shape == other.shape and (one - other).abs().max() < 1e-10
    assert not own[0][0].any() and not own[1][0][0].any()  # pruned: nothing out, nothing back


@pytest.mark.parametrize("index", range(len(BITS)))
def test_gates_that_are_open_or_shut_are_the_plain_quantizer_to_the_bit(form, index):
    lower, upper, bits = torch.tensor(-0.31), torch.tensor(1.7), BITS[index]
    n = 2**bits - 1
    x = torch.randn(50000)
    x[:n] = (torch.arange(n) + 0.5) / n * (upper - lower) + lower  # the middle between levels
    shares = gate_shares(torch.tensor([float(at <= index) for at in range(len(BITS))]))
    values = gated_activation(x, lower, upper, shares, BITS)
    assert torch.equal(values, quantize_activation(x, lower, upper, bits) * (1 / n))
    values = gated_weight(x, lower, upper, shares, BITS)
    assert torch.equal(values, quantize_weight(x, lower, upper, odd(bits)) * (1 / n))


def test_shut_gates_prune():
    bounds = torch.tensor(-1.0), torch.tensor(1.0)
    x = torch.randn(100, requires_grad=True)
    out = gated_weight(x, *bounds, gate_shares(torch.tensor([0.0, 1.0, 1.0])), BITS)
    out.sum().backward()
    assert not out.any() and not x.grad.any()


def test_one_graph_serves_all_gates():
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(gated_activation, backend=counter, fullgraph=True)
    x, bounds = torch.randn(64, requires_grad=True), (torch.tensor(0.0), torch.tensor(1.0))
    for gates in ([1.0, 0.5, 0.2], [1.0, 0.0, 0.0], [1.0, 1.0, 1.0]):
        shares = gate_shares(torch.tensor(gates))
        assert torch.equal(
            compiled(x, *bounds, shares, BITS), gated_activation(x, *bounds, shares, BITS)
        )
    assert counter.frame_count == 1
