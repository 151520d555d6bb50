"""Running statistics anew: means over batches, of the norms of a bit-width and nothing else."""

import pytest
import torch

from brevitas_multiquant import calibrate, reestimate_norms
from brevitas_multiquant.errors import BitWidthError, CalibrationError, ConfigError
from brevitas_multiquant.training.norm_statistics import norms_of


@pytest.fixture
def net(make_net, images):
    network = make_net(bits=(2, 4, 6))
    calibrate(network, [images])
    return network.train()


def statistics(net, bits):
    return [value.clone() for n in norms_of(net, bits) for value in (n.running_mean, n.running_var)]


def changed(before, after):
    return {name for name in before if not torch.equal(before[name], after[name])}


def test_first_norm_by_hand(net, images):
    """Means over three batches of what the norm reads, as the network evaluates."""
    batches = [images, images.flip(3), images + 0.1]
    norm = next(norms_of(net, 4))
    read = []
    norm.register_forward_hook(lambda _module, inputs, _output: read.append(inputs[0]))
    reestimate_norms(net, batches, batches=3, bits=[4])
    assert len(read) == 3
    means = torch.stack([x.mean((0, 2, 3)) for x in read]).mean(0)
    variances = torch.stack([x.var((0, 2, 3)) for x in read]).mean(0)
    # sums of a few hundred fp32 numbers in another order
    torch.testing.assert_close(norm.running_mean, means, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(norm.running_var, variances, rtol=1e-5, atol=1e-6)


def test_the_present_network_counts_and_not_what_was_before(net, images):
    reestimate_norms(net, [images], batches=1)
    expected = [statistics(net, bits) for bits in net.bits]
    for bits in net.bits:
        for norm in norms_of(net, bits):
            norm.momentum = 0.3
            norm.running_mean.fill_(7.0)
    reestimate_norms(net, [images], batches=1)
    for bits, values in zip(net.bits, expected, strict=True):
        for one, other in zip(statistics(net, bits), values, strict=True):
            assert torch.equal(one, other)
    assert {norm.momentum for norm in norms_of(net, 4)} == {0.3}


def test_nothing_else_changes(net, images):
    """Not the other bit-widths, not the stem's norm, no range, no mode, no active bit-width."""
    net.stem.eval()
    modes = [module.training for module in net.modules()]
    active = net.active_bits
    before = {name: value.clone() for name, value in net.state_dict().items()}
    reestimate_norms(net, [images + 1], batches=1, bits=[4])
    after = changed(before, net.state_dict())
    assert after and all(".4." in name for name in after)
    assert all(name.endswith(("running_mean", "running_var", "tracked")) for name in after)
    assert [module.training for module in net.modules()] == modes
    assert net.active_bits == active


def test_half_branches_have_norms_of_their_own(make_net, images):
    net = make_net(bits=(2, 3, 4))
    calibrate(net, [images])
    before = {name: value.clone() for name, value in net.state_dict().items()}
    reestimate_norms(net, [images + 1], batches=1, bits=[3])
    assert any(name.startswith("halves.") for name in changed(before, net.state_dict()))


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"batches": 0}, ConfigError, "batches: expected at least 1, got 0"),
        ({"bits": [5]}, BitWidthError, r"expected bits out of \[2, 4, 6\], got \[5\]"),
        ({"loader": []}, CalibrationError, "reestimate_norms: expected at least one batch"),
        ({"loader": 7}, CalibrationError, "reestimate_norms: expected batches of images, such as"),
        ({"loader": ["cat"]}, CalibrationError, "reestimate_norms: expected batches of images"),
        (
            {"loader": [torch.rand(2, 7, 8, 8)]},
            CalibrationError,
            "reestimate_norms: expected torch.float32 images that the network takes",
        ),
    ],
)
def test_what_is_wrong_is_named_and_changes_nothing(net, images, options, error, text):
    before = {name: value.clone() for name, value in net.state_dict().items()}
    with pytest.raises(error, match=text):
        reestimate_norms(net, **{"loader": [images], **options})
    assert not changed(before, net.state_dict())
    assert net.training and {norm.momentum for norm in norms_of(net, 4)} == {0.1}
