"""Norms of an assignment's own: against means by hand, and what is and is not shared."""

import pytest
import torch

from brevitas_multiquant import (
    Assignment,
    ModelSource,
    extract_subnet,
    load_packed,
    reestimate_norms,
    save_packed,
)
from brevitas_multiquant.errors import BitWidthError, PackedFileError
from brevitas_multiquant.nn import SwitchableNorm
from brevitas_multiquant.training.norm_statistics import assigned_norms, norms_of
from tests.tiny import TinyNet

MIXED = Assignment(4, {"conv1": (2, 2), "conv2": (2, 4)})
BATCHES = 3


@pytest.fixture
def batches(images):
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(images.shape, generator=generator) for _ in range(BATCHES)]


def test_statistics_are_means_over_the_batches_under_the_assignment(net, batches):
    """What a norm reads does not depend on its statistics: it trains, all else evaluates."""
    view = assigned_norms(net, MIXED, batches, batches=BATCHES).eval()
    kept, read = {}, {}
    for norm in norms_of(view, 4):
        kept[norm] = norm.running_mean.clone(), norm.running_var.clone()
        norm.register_forward_pre_hook(lambda norm, x: read.setdefault(norm, []).append(x[0]))
        norm.train()
    with torch.no_grad():
        for batch in batches:
            view(batch)
    assert len(read) == 4  # two norms in each of two branches
    for norm, seen in read.items():
        means = torch.stack([x.mean((0, 2, 3)) for x in seen]).mean(0)
        variances = torch.stack([x.var((0, 2, 3)) for x in seen]).mean(0)
        # sums of a few hundred fp32 numbers in another order
        torch.testing.assert_close(kept[norm], (means, variances), rtol=1e-5, atol=1e-6)


def test_at_one_bit_width_they_are_those_of_reestimate_norms(net, batches):
    view = assigned_norms(net, Assignment.uniform(net, 4), batches, batches=BATCHES)
    reestimate_norms(net, batches, batches=BATCHES, bits=[4])
    theirs = net.state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in view.state_dict().items())


def test_the_network_is_as_before_and_shares_all_but_norms(net, batches):
    before = {name: value.clone() for name, value in net.state_dict().items()}
    view = assigned_norms(net, MIXED, batches)
    after = net.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert list(view.state_dict()) == list(before)
    norms = {
        f"{name}.{key}"
        for name, module in net.named_modules()
        if isinstance(module, SwitchableNorm)
        for key, _ in module.state_dict(keep_vars=True).items()
    }
    theirs = dict(net.state_dict(keep_vars=True))
    own = {n for n, value in view.state_dict(keep_vars=True).items() if value is not theirs[n]}
    assert own == norms


def test_it_differs_where_it_runs_and_nowhere_else(net, batches, images):
    view = assigned_norms(net.eval(), MIXED, batches).eval()
    with torch.no_grad(), net.at_bits(MIXED):
        assert not torch.equal(view(images), net(images))
    with torch.no_grad(), view.at_bits(2), net.at_bits(2):
        assert torch.equal(view(images), net(images))


def test_two_assignments_have_norms_apart(net, batches, images):
    other = MIXED.with_activations({"conv2": 2})
    first, second = (assigned_norms(net, one, batches).eval() for one in (MIXED, other))
    with torch.no_grad():
        expected = first(images)
        again = assigned_norms(net, MIXED, batches).eval()
        assert torch.equal(again(images), expected)
        assert not torch.equal(second(images), expected)


def test_it_is_extracted_and_packed_like_any_network(net, batches, images, tmp_path):
    net.source = ModelSource("own", "TinyNet")
    view = assigned_norms(net, MIXED, batches).eval()
    loaded = load_packed(save_packed(view, tmp_path / "own.safetensors"), TinyNet())
    with torch.no_grad(), loaded.at_bits(MIXED):
        expected = view(images)
        assert torch.equal(extract_subnet(view, MIXED)(images), expected)
        assert torch.equal(loaded(images), expected)


def test_refusals(net, batches, tmp_path):
    net.source = ModelSource("own", "TinyNet")
    with pytest.raises(BitWidthError, match=r"assigned_norms: expected sites of the network, got"):
        assigned_norms(net, Assignment(4, {"none": (2, 2)}), batches)
    loaded = load_packed(save_packed(net, tmp_path / "net.safetensors"), TinyNet())
    with pytest.raises(PackedFileError, match="assigned_norms: expected a network that can be"):
        assigned_norms(loaded, MIXED, batches)
