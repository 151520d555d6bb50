"""Switchable norms: separate statistics, and the one definition of a batch norm's evaluation."""

from dataclasses import dataclass

import pytest
import torch
from torch import nn

from brevitas_multiquant.core.panel import Panel
from brevitas_multiquant.nn import SwitchableNorm, SwitchableQuantizer
from brevitas_multiquant.nn.switchable import ScaleShiftNorm, exact_norm, scale_and_shift


def trained_batch_norm(channels=5, **options):
    norm = nn.BatchNorm2d(channels, **options)
    if norm.affine:
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.1, 3.0)
    return norm


def test_statistics_are_separate():
    active = Panel(2)
    norm = SwitchableNorm.create(nn.BatchNorm2d(3), (2, 4), active)
    norm(torch.randn(8, 3, 4, 4) + 10)
    assert norm["2"].num_batches_tracked.item() == 1
    assert norm["4"].num_batches_tracked.item() == 0
    assert torch.equal(norm["4"].running_mean, torch.zeros(3))
    active.bits = 4
    norm(torch.randn(8, 3, 4, 4))
    assert norm["4"].num_batches_tracked.item() == 1
    assert (norm["2"].running_mean - 1.0).abs().max() < 0.1  # momentum 0.1 times a mean of 10


def test_members_start_as_copies():
    original = trained_batch_norm()
    norm = SwitchableNorm.create(original, (2, 4, 8), Panel(2))
    assert list(norm) == ["2", "4", "8"]
    for member in norm.values():
        for name, value in original.state_dict().items():
            assert torch.equal(member.state_dict()[name], value)
            assert member.state_dict()[name].data_ptr() != value.data_ptr()
    assert type(original) is nn.BatchNorm2d


@pytest.mark.parametrize(
    "make", [lambda: nn.GroupNorm(2, 4), lambda: nn.InstanceNorm2d(4, affine=True)]
)
def test_any_norm_is_switched(make):
    original = make()
    active = Panel(2)
    norm = SwitchableNorm.create(original, (2, 4), active)
    x = torch.randn(2, 4, 5, 5)
    with torch.no_grad():
        norm["4"].weight.fill_(3.0)
    assert torch.equal(norm(x), original(x))
    active.bits = 4
    assert not torch.equal(norm(x), original(x))


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("dims", [1, 2])
def test_scale_and_shift_is_the_batch_norm(dims, affine):
    reference = trained_batch_norm(affine=affine)
    if dims == 1:
        plain = nn.BatchNorm1d(5, affine=affine)
        plain.load_state_dict(reference.state_dict())
        reference = plain
    reference.eval()
    x = torch.randn(3, 5, *(7,) * dims)
    scale, shift = scale_and_shift(reference)
    shape = (1, 5, *(1,) * dims)
    # a subtraction first or not: a few roundings of numbers up to about 10, 10 * 2**-23
    torch.testing.assert_close(
        x * scale.view(shape) + shift.view(shape), reference(x), rtol=1e-6, atol=2e-6
    )


def test_evaluation_is_two_roundings():
    active = Panel(4)
    norm = exact_norm(trained_batch_norm(), active).eval()
    assert isinstance(norm, ScaleShiftNorm)
    x = torch.randn(3, 5, 4, 4)
    scale, shift = (v.view(1, 5, 1, 1) for v in scale_and_shift(norm))
    assert torch.equal(norm(x), x * scale + shift)


def test_training_and_float_mode_are_the_frameworks_own():
    original = trained_batch_norm()
    active = Panel(4)
    norm = exact_norm(trained_batch_norm(), active)
    norm.load_state_dict(original.state_dict())
    x = torch.randn(3, 5, 4, 4)
    assert torch.equal(norm.train()(x), original.train()(x))
    with active.floating():
        assert torch.equal(norm.eval()(x), original.eval()(x))


def test_subclasses_of_batch_norm_keep_their_evaluation():
    class Doubling(nn.BatchNorm2d):
        def forward(self, x):
            return 2 * super().forward(x)

    assert type(exact_norm(Doubling(3), Panel(2))) is Doubling


def test_quantizer_runs_the_active_bit_width_or_nothing():
    active = Panel(2)
    quantizer = SwitchableQuantizer.create((2, 8), active)
    x = torch.randn(10_000).abs()  # reaches beyond the initial u, 3 std of the normal
    assert quantizer(x).max().item() == 3
    active.bits = 8
    assert quantizer(x).max().item() == 255
    with active.floating():
        assert quantizer(x) is x
    assert active.quantized


@dataclass
class Setting:
    bits: int
    own: int
    next: int
    quantized: bool = True


@pytest.mark.parametrize(
    ("key", "names", "running"),
    [
        (("bits",), ["2", "4"], "4"),
        (("own", "next"), ["2_2", "2_4", "4_2", "4_4"], "2_4"),
        ((), ["any"], "any"),
    ],
)
def test_a_key_tells_which_norm_runs(key, names, running):
    """Switchable, transitional and plain norms are one module with another key."""
    norm = SwitchableNorm.create(nn.BatchNorm2d(3), (2, 4), Setting(4, own=2, next=4), key=key)
    assert list(norm) == names
    norm(torch.randn(8, 3, 4, 4))
    used = {name for name, member in norm.items() if member.num_batches_tracked.item()}
    assert used == {running}


def test_ranges_of_other_keys():
    setting = Setting(4, own=2, next=4)
    for key, running in ((("own",), "2"), ((), "any")):
        quantizer = SwitchableQuantizer.create((2, 4), setting, key=key)
        quantizer(torch.randn(4, 3))
        observed = {
            name
            for name, value in quantizer.state_dict().items()
            if name.endswith("observed") and value
        }
        assert {name.split(".")[0] for name in observed} == {running}
