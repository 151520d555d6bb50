"""Pickles of whole networks: what torch.save, joblib and processes make of them."""

import io
import pickle
import sys
from collections.abc import Callable
from contextlib import nullcontext

import joblib
import pytest
import torch
from torch import Tensor, nn

from brevitas_multiquant import InPlaceDistillation, MultiQuantNet, calibrate, cost, extract_subnet
from brevitas_multiquant.errors import UntracedWarning
from tests.tiny import BranchingOnData, FunctionalDropoutNet, SharedLayerNet, TinyNet


def by_torch(net: nn.Module) -> MultiQuantNet:
    file = io.BytesIO()
    torch.save(net, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def by_joblib(net: nn.Module) -> MultiQuantNet:
    file = io.BytesIO()
    joblib.dump(net, file)
    file.seek(0)
    return joblib.load(file)


WAYS = {
    "torch.save": by_torch,
    "joblib": by_joblib,
    "pickle": lambda net: pickle.loads(pickle.dumps(net)),
    "pickle twice": lambda net: pickle.loads(pickle.dumps(pickle.loads(pickle.dumps(net)))),
}


def assert_equal_everywhere(one: MultiQuantNet, other: MultiQuantNet, images: Tensor) -> None:
    """Evaluation, losses and gradients of every bit-width, to the bit."""
    for bits in one.bits:
        with torch.no_grad(), one.eval().at_bits(bits), other.eval().at_bits(bits):
            logits = one(images)
            assert torch.equal(other(images), logits)
            assert torch.equal(extract_subnet(other, bits)(images), logits)
    gradients = []
    for net in (one, other):
        torch.manual_seed(0)
        net.zero_grad()
        InPlaceDistillation(net.train())(images, torch.arange(4))["loss"].backward()
        gradients.append({name: p.grad for name, p in net.named_parameters()})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        theirs = gradients[1][name]
        assert (gradient is theirs is None) or torch.equal(gradient, theirs), name


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("profile", ["paper", "finn"])
def test_round_trip(
    make_net: Callable[..., MultiQuantNet], images: Tensor, way: str, profile: str
) -> None:
    net = make_net(bits=(2, 3, 4), profile=profile)
    calibrate(net, [images])
    net.eval().set_active_bits(3)
    with net.at_bits(2):
        again = WAYS[way](net)
    assert (again.active_bits, again.bits, again.training) == (2, net.bits, False)
    assert str(again.plan) == str(net.plan) and str(cost(again)) == str(cost(net))
    assert list(again.state_dict()) == list(net.state_dict())
    assert not {p.data_ptr() for p in again.parameters()} & {p.data_ptr() for p in net.parameters()}
    assert_equal_everywhere(net, again, images)
    again.load_state_dict(net.state_dict())  # some quantizers are made anew
    assert_equal_everywhere(net, again, images)


@pytest.mark.parametrize("model", [FunctionalDropoutNet, BranchingOnData, SharedLayerNet])
def test_other_networks(
    make_net: Callable[..., MultiQuantNet], images: Tensor, model: type[nn.Module]
) -> None:
    untraced = pytest.warns(UntracedWarning) if model is BranchingOnData else nullcontext()
    with untraced:
        net = make_net(model())
    calibrate(net, [images])
    again = WAYS["pickle"](net)
    assert again.plan.opaque == net.plan.opaque
    assert_equal_everywhere(net, again, images)


@pytest.mark.parametrize("weights", ["int2", "ternary"])
def test_other_weight_formats(
    make_net: Callable[..., MultiQuantNet], images: Tensor, weights: str
) -> None:
    net = make_net(weights=weights)
    calibrate(net, [images])
    assert_equal_everywhere(net, WAYS["pickle"](net), images)


def test_a_network_that_was_never_calibrated(make_net: Callable[..., MultiQuantNet]) -> None:
    again = WAYS["pickle"](make_net())
    images = torch.randn(4, 3, 8, 8)
    calibrate(again, [images])
    assert again.eval()(images).isfinite().all()


def test_views_become_independent(net: MultiQuantNet, images: Tensor) -> None:
    net.eval()
    view = net.view(2)
    with torch.no_grad():
        expected = view(images)
        again = WAYS["pickle"](view)
        for parameter in net.parameters():
            parameter.mul_(0.5)
        assert again.active_bits == 2 and torch.equal(again(images), expected)


def test_two_views_in_one_pickle_still_share(net: MultiQuantNet, images: Tensor) -> None:
    net.eval()
    with torch.no_grad():
        expected = [net.view(bits)(images) for bits in (2, 4)]
        low, high = pickle.loads(pickle.dumps((net.view(2), net.view(4))))
        assert [torch.equal(v(images), e) for v, e in zip((low, high), expected, strict=True)]
        assert all(a is b for a, b in zip(low.parameters(), high.parameters(), strict=True))
    assert (low.active_bits, high.active_bits) == (2, 4)


def _logits(_rank: int, net: MultiQuantNet, images: Tensor, queue: object) -> None:
    torch.set_num_threads(1)
    with torch.no_grad():
        queue.put(net(images).tolist())  # type: ignore[attr-defined]


def test_another_process(net: MultiQuantNet, images: Tensor) -> None:
    """Spawned, as ``torch.multiprocessing.spawn`` does: it imports everything itself."""
    net.eval().set_active_bits(2)
    queue = torch.multiprocessing.get_context("spawn").SimpleQueue()
    worker = sys.modules[__name__]._logits
    context = torch.multiprocessing.spawn(worker, (net, images, queue), nprocs=1, join=False)
    got = queue.get()
    while not context.join():
        pass
    with torch.no_grad():
        assert torch.equal(torch.tensor(got), net(images))
    assert isinstance(net.stem, nn.Module) and TinyNet is not None
