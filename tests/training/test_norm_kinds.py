"""Every kind of norm that keeps running statistics is estimated anew: means over batches."""

import copy

import pytest
import torch
from timm.layers import BatchNormAct2d, EvoNorm2dB0, SplitBatchNorm2d
from torch import nn

from brevitas_multiquant import calibrate, multiquantize, reestimate_norms
from brevitas_multiquant.errors import CalibrationError
from brevitas_multiquant.training.norm_statistics import norms_of

KINDS = {
    "batch": lambda: nn.BatchNorm2d(8),
    "batch, cumulative": lambda: nn.BatchNorm2d(8, momentum=None),
    "synchronised": lambda: nn.SyncBatchNorm(8),
    "with activation": lambda: BatchNormAct2d(8),
    "instance": lambda: nn.InstanceNorm2d(8, track_running_stats=True),
    "instance, affine": lambda: nn.InstanceNorm2d(8, affine=True, track_running_stats=True),
    "instance, cumulative": lambda: nn.InstanceNorm2d(8, momentum=None, track_running_stats=True),
    "evolved": lambda: EvoNorm2dB0(8),
    "split": lambda: SplitBatchNorm2d(8, num_splits=2),
}
WITHOUT = {
    "instance": lambda: nn.InstanceNorm2d(8),
    "batch": lambda: nn.BatchNorm2d(8, track_running_stats=False),
    "group": lambda: nn.GroupNorm(2, 8),
}


def batches():
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(4, 3, 8, 8, generator=generator) * (i + 1) for i in range(3)]


def network(make):
    model = nn.Sequential(
        *(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3), make(), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)),
    )
    net = multiquantize(model, [2, 4], input_shape=(1, 3, 8, 8))
    calibrate(net, batches()[:1])
    return net


def statistics(norm):
    values = (getattr(norm, name, None) for name in ("running_mean", "running_var"))
    return [value for value in values if value is not None]


@pytest.mark.parametrize("kind", KINDS)
def test_statistics_are_means_over_batches(kind):
    net = network(KINDS[kind])
    norms = list(norms_of(net, 4))
    momenta = [norm.momentum for norm in norms]
    read = {norm: [] for norm in norms}
    for norm in norms:
        norm.register_forward_hook(lambda module, inputs, _: read[module].append(inputs[0]))
        for value in statistics(norm):
            value.fill_(float("nan"))  # what was before does not count
    others = [v.clone() for norm in norms_of(net, 2) for v in statistics(norm)]
    reestimate_norms(net, batches(), batches=3, bits=[4])
    for norm, momentum in zip(norms, momenta, strict=True):
        assert norm.momentum == momentum
        assert len(read[norm]) == 3
        seen = []
        for x in read[norm]:
            alone = copy.deepcopy(norm).train()
            for module in alone.modules():
                module._forward_hooks.clear()
            alone.momentum = 1.0
            for value in statistics(alone):
                value.zero_()
            alone(x)
            seen.append(statistics(alone))
        for found, *each in zip(statistics(norm), *seen, strict=True):
            # a running mean in fp32 against a mean of three: a few units of 2**-24
            torch.testing.assert_close(found, torch.stack(each).mean(0), rtol=1e-5, atol=1e-6)
            assert found.isfinite().all() and not torch.equal(found, torch.zeros_like(found))
    after = [v for norm in norms_of(net, 2) for v in statistics(norm)]
    assert all(torch.equal(a, b) for a, b in zip(others, after, strict=True))


@pytest.mark.parametrize("kind", WITHOUT)
def test_norms_without_statistics_are_left_alone(kind):
    net = network(WITHOUT[kind])
    assert not list(norms_of(net, 4))
    before = {name: value.clone() for name, value in net.state_dict().items()}
    reestimate_norms(net, batches(), batches=3)
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())


def on_pixels():
    """A batch norm that sees maps of one pixel."""
    model = nn.Sequential(
        *(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1)),
        *(nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8, 5)),
    )
    net = multiquantize(model, [2, 4], input_shape=(1, 3, 8, 8))
    calibrate(net, batches()[:1])
    return net.train()


@pytest.mark.parametrize("function", [calibrate, reestimate_norms])
@pytest.mark.parametrize("full", [0, 2])
def test_a_batch_of_one_image_of_one_pixel_is_refused_by_name(function, full):
    """Also where it is a loader's last; the network is left as it was."""
    net, several = on_pixels(), batches()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    momenta = [norm.momentum for norm in norms_of(net, 2)]
    name, loader = function.__name__, [*several[:full], several[0][:1]]
    with pytest.raises(CalibrationError, match=rf"^{name}: expected batches of two images or more"):
        function(net, loader, batches=3)
    assert all(torch.equal(before[key], value) for key, value in net.state_dict().items())
    assert all(module.training for module in net.modules()) and net.active_bits == 4
    assert [norm.momentum for norm in norms_of(net, 2)] == momenta
    function(net, several, batches=3)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError("no"),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"),
        RuntimeError("MPS backend out of memory (MPS allocated: 1 GB)"),
        RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes."),
    ],
)
@pytest.mark.parametrize("function", [calibrate, reestimate_norms])
def test_memory_that_runs_out_is_not_the_images_fault(function, error):
    net = on_pixels()
    before = {name: value.clone() for name, value in net.state_dict().items()}

    def fail(*_):
        raise error

    hook = net.head.register_forward_pre_hook(fail)
    with pytest.raises(type(error)) as raised:
        function(net, batches())
    assert raised.value is error
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    hook.remove()
    function(net, batches())


@pytest.mark.parametrize("error", [ValueError("of the model"), RuntimeError("shapes")])
def test_other_failures_of_the_forward_are_named(error):
    net = on_pixels()

    def fail(*_):
        raise error

    net.head.register_forward_pre_hook(fail)
    with pytest.raises(CalibrationError, match=r"expected torch\.float32 images") as told:
        calibrate(net, batches())
    assert told.value.__cause__ is error
