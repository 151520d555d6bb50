"""Whichever network a run trains, it asks the same of it."""

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from torch import nn

from brevitas_multiquant import load_packed
from brevitas_multiquant.recipes.network.accuracy import top1
from brevitas_multiquant.recipes.network.build import create_network
from brevitas_multiquant.recipes.network.health import first_fault
from brevitas_multiquant.recipes.options.train import parse_train

KINDS = {"float": ["--float"], "branches": ["--bits", "2", "4"]}


def made(kind):
    options = parse_train([*KINDS[kind], "--img-size", "8"])
    return create_network(options.model, 10, img_size=8, seed=0), options


@pytest.fixture(params=KINDS)
def trainee(request):
    return made(request.param)[0]


def batches(count=2):
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(count, 4, 3, 8, 8, generator=generator)
    return [(batch, torch.arange(4)) for batch in images]


def test_names_of_parameters_are_those_of_the_network(trainee):
    assert not isinstance(trainee, nn.Module)
    names = set(trainee.module.state_dict())
    assert any(name in names for name in ("conv1.weight", "stem.conv1.weight"))


def test_each_parameter_is_learned_once(trainee):
    ranges, others = list(trainee.range_parameters()), list(trainee.model_parameters())
    assert len({*ranges, *others}) == len(ranges) + len(others)
    assert {*ranges, *others} == set(trainee.module.parameters())
    assert bool(ranges) == (trainee.bits != (32,))


def test_a_float_network_is_its_own_module():
    net, _ = made("float")
    images = batches()[0][0]
    net.module.eval()
    with net.at_bits(32):
        assert torch.equal(net(images), net.module(images))
    accelerator = Accelerator(cpu=True)
    assert set(top1(net, batches(), net.bits, accelerator)) == {32}
    assert first_fault(net, images) is None
    assert (net.costs(8), net.dead_branches(iter(())), net.reestimate_norms(iter(()), 1)) == (
        None,
        [],
        [],
    )


@pytest.mark.parametrize("kind", KINDS)
def test_a_task_differentiates_its_loss(kind):
    net, options = made(kind)
    task = net.task(nn.CrossEntropyLoss(), options.objective)
    parts = []
    result = task.step(*batches()[0], lambda loss: (parts.append(loss.item()), loss.backward()))
    assert result["loss"].item() == pytest.approx(sum(parts), rel=1e-6)  # float32 sums of two
    assert len(parts) == len(net.bits)
    assert all(p.grad is not None for p in net.model_parameters())


def test_each_is_written_in_its_own_form(tmp_path, trainee):
    trainee.calibrate(batches())
    trainee.save(tmp_path / "net.safetensors")
    if trainee.bits == (32,):
        stored = load_file(tmp_path / "net.safetensors")
        assert all(torch.equal(stored[k], v) for k, v in trainee.module.state_dict().items())
    else:
        assert load_packed(tmp_path / "net.safetensors").bits == trainee.bits


def test_a_moving_average_is_of_the_same_kind(trainee):
    other = trainee.of(trainee.module)
    assert type(other) is type(trainee) and other == trainee
