"""What people do with any module: copy it, pickle its state, wrap it, change layout and size.

On six families that differ in layout, norms, joins and gates.
"""

import copy
import io
from functools import cache

import pytest
import torch
from torch.nn.parallel import DistributedDataParallel

from brevitas_multiquant import calibrate, multiquantize
from tests.zoo import SHAPE, ZOO

FAMILIES = [
    "timm resnet",
    "timm resnetv2",
    "timm efficientnet",
    "timm convnext",
    "torchvision densenet",
    "torchvision vgg",
]
BITS = (2, 4)
IMAGES = torch.randn(2, *SHAPE[1:], generator=torch.Generator().manual_seed(0))


@cache
def made(family):
    """The float model, its network, the same calibrated; tests leave them as they are."""
    torch.manual_seed(0)
    model = ZOO[family]()
    net = multiquantize(model, BITS, input_shape=SHAPE)
    calibrated = copy.deepcopy(net)
    calibrate(calibrated, [IMAGES])
    return model.eval(), net.eval(), calibrated.eval()


def outputs(net, images=IMAGES):
    with torch.no_grad():
        result = {}
        for bits in BITS:
            with net.at_bits(bits):
                result[bits] = net(images)
    return result


@pytest.fixture(params=FAMILIES)
def net(request):
    """A calibrated network."""
    return made(request.param)[-1]


def test_deepcopy(net):
    twin = copy.deepcopy(net)
    expected = outputs(net)
    assert all(torch.equal(value, expected[bits]) for bits, value in outputs(twin).items())
    before = net.active_bits
    twin.set_active_bits(2 if before == 4 else 4)
    assert net.active_bits == before
    shared = {id(p) for p in net.parameters()} & {id(p) for p in twin.parameters()}
    assert not shared


def test_pickled_state(net):
    file = io.BytesIO()
    torch.save(net.state_dict(), file)
    file.seek(0)
    other = copy.deepcopy(net)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(0.5)
    other.load_state_dict(torch.load(file, weights_only=True))
    expected = outputs(net)
    assert all(torch.equal(value, expected[bits]) for bits, value in outputs(other).items())


@pytest.mark.parametrize("family", FAMILIES)
def test_changed_input_size(family):
    """The traced size is not baked in: at another one it still is the model, to the bit."""
    model, net, calibrated = made(family)
    images = torch.randn(2, 3, 96, 80, generator=torch.Generator().manual_seed(1))
    with torch.no_grad(), net.floating(), net.at_bits(2):
        assert torch.equal(net(images), model(images))
    assert outputs(calibrated, images)[4].shape == (2, 10)


def test_channels_last(net):
    twin = copy.deepcopy(net).to(memory_format=torch.channels_last)
    images = IMAGES.to(memory_format=torch.channels_last)
    for mode in (net, twin):
        mode.eval()
    with torch.no_grad(), net.floating(), twin.floating():
        expected, got = outputs(net), outputs(twin, images)
    for bits in BITS:
        # other kernels, another order of summation: floats agree to rounding
        torch.testing.assert_close(got[bits], expected[bits], rtol=1e-3, atol=1e-4)
    for value in outputs(twin, images).values():
        assert torch.isfinite(value).all()


@pytest.fixture(scope="module")
def one_rank(tmp_path_factory):
    store = tmp_path_factory.mktemp("ranks") / "store"
    torch.distributed.init_process_group("gloo", f"file://{store}", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def test_ddp(net, one_rank):
    """One rank, idle branches: the gradients are those of the bare network."""
    bare = copy.deepcopy(net).train()
    wrapped = DistributedDataParallel(copy.deepcopy(bare), find_unused_parameters=True)
    for module in (bare, wrapped):
        torch.manual_seed(0)
        module(IMAGES).square().mean().backward()
    theirs = dict(wrapped.module.named_parameters())
    assert any(parameter.grad is not None for parameter in theirs.values())
    for name, parameter in bare.named_parameters():
        got, expected = theirs[name].grad, parameter.grad
        assert (got is None) is (expected is None), name
        assert expected is None or torch.equal(got, expected), name
