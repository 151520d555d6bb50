"""Calibration: the paper's rule by hand, other observers, what is restored, bad data."""

import copy
import math

import pytest
import torch
from torch.ao.quantization import observer as torch_observers

from brevitas_multiquant import calibrate
from brevitas_multiquant.errors import CalibrationError, ConfigError
from brevitas_multiquant.nn import SwitchableQuantizer
from brevitas_multiquant.quant.layers import CodeLayer, weight_range
from brevitas_multiquant.quant.ranges import LearnedRange
from brevitas_multiquant.rewrite.build import RANGE_SPREAD
from brevitas_multiquant.training.calibrate import activation_ranges
from tests.tiny import FunctionalDropoutNet, TinyNet


def batches(count):
    generator = torch.Generator().manual_seed(11)
    return [torch.randn(4, 3, 8, 8, generator=generator) for _ in range(count)]


def stem_output(net, images):
    """What the first quantizers see: the stem with the statistics of the batch."""
    stem, model = net.stem.train(), net.training
    with torch.no_grad():
        features = stem(images)
    net.train(model)
    return features


def first_range(net, bits, branch=0):
    """The range of the stem's output in a branch."""
    quantizer = net.branches[branch].get_submodule("input_quants.conv1")
    return next(m for m in quantizer[str(bits)].modules() if isinstance(m, LearnedRange))


def bounds(learned):
    return learned.lower.item(), learned.upper.item()


def test_paper_rule_by_hand(make_net):
    net, (images,) = make_net(), batches(1)
    calibrate(net, [images])
    x = stem_output(net, images)
    upper = 3 * x.std(correction=0).item() / math.sqrt(1 - 2 / math.pi)
    for bits in (2, 4):
        assert bounds(first_range(net, bits)) == pytest.approx((0.0, upper), rel=1e-6)  # fp32
    for index, branch in enumerate(net.branches):
        for layer in (m for m in branch.modules() if isinstance(m, CodeLayer)):
            # equal branches start a little apart
            reach = 3 * (1 + RANGE_SPREAD * index) * layer.weight.std(correction=0).item()
            assert bounds(weight_range(layer)) == pytest.approx((-reach, reach), rel=1e-6)


def test_paper_rule_is_averaged_over_batches(make_net):
    net, several = make_net(), batches(3)
    calibrate(net, several, batches=3)
    deviations = [stem_output(net, images).std(correction=0).item() for images in several]
    upper = 3 * sum(deviations) / 3 / math.sqrt(1 - 2 / math.pi)
    assert bounds(first_range(net, 2)) == pytest.approx((0.0, upper), rel=1e-6)  # fp32
    assert first_range(net, 2).observed.item() == 3


def test_every_range_in_use_is_set(make_net):
    net = make_net(bits=(2, 4, 6))
    calibrate(net, batches(1))
    learned = [m for m in net.modules() if isinstance(m, LearnedRange)]
    assert all(m.ready and m.upper > m.lower and m.observer is None for m in learned)
    for bits in net.bits:
        assert len(list(activation_ranges(net, bits))) == 2 * len(net.selection[bits])


def test_later_quantizers_see_what_earlier_ones_let_through(make_net):
    """At 2 and at 8 bits the first block emits different values, so the second ranges differ."""
    net = make_net(bits=(2, 8), selection={2: [0], 8: [0, 1, 2, 3]})
    calibrate(net, batches(1))
    quantizer = net.branches[0].get_submodule("input_quants.conv2")
    coarse, fine = (
        next(m for m in quantizer[bits].modules() if isinstance(m, LearnedRange))
        for bits in ("2", "8")
    )
    assert coarse.upper != fine.upper
    assert first_range(net, 2).upper == first_range(net, 8).upper


def test_signed_activations_get_a_signed_range(make_net):
    model = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3),
        torch.nn.Conv2d(4, 4, 3),
        torch.nn.AdaptiveAvgPool2d(1),
        torch.nn.Flatten(),
        torch.nn.Linear(4, 5),
    )
    net, (images,) = make_net(model), batches(1)
    calibrate(net, [images])
    x = stem_output(net, images)
    reach = 3 * x.std(correction=0).item()
    expected = (
        max(x.min().item(), x.mean().item() - reach),
        min(x.max().item(), x.mean().item() + reach),
    )
    assert bounds(next(iter(activation_ranges(net, 2)))) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("bits", [2, 8, 10])
def test_minmax_spans_all_batches(make_net, bits):
    net, several = make_net(bits=(bits,)), batches(2)
    calibrate(net, several, batches=2, observer="minmax")
    highest = max(stem_output(net, images).max().item() for images in several)
    # scale = max / levels and back in fp32
    assert bounds(first_range(net, bits)) == pytest.approx((0.0, highest), rel=1e-6)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("histogram", torch_observers.HistogramObserver),
        ("moving_average", torch_observers.MovingAverageMinMaxObserver),
    ],
)
def test_torch_observers_see_the_same_data(make_net, name, kind):
    net, several = make_net(), batches(2)
    calibrate(net, several, batches=2, observer=name)
    oracle = kind(dtype=torch.quint8, qscheme=torch.per_tensor_affine, quant_min=0, quant_max=3)
    for images in several:
        oracle(stem_output(net, images))
    scale, zero_point = oracle.calculate_qparams()
    expected = (-zero_point * scale).item(), ((3 - zero_point) * scale).item()
    assert bounds(first_range(net, 2)) == expected
    assert 0 < expected[1] <= max(stem_output(net, images).max().item() for images in several)


def test_the_loader_is_read_once_and_no_further(make_net):
    taken = []

    def loader():
        for index, images in enumerate(batches(5)):
            taken.append(index)
            yield images, torch.zeros(4)

    calibrate(make_net(), loader(), batches=2)
    assert taken == [0, 1]


def test_modes_and_bits_are_restored_and_dropout_is_off(make_net, images):
    net = make_net(FunctionalDropoutNet())
    net.train()
    net.head.eval()
    net.set_active_bits(2)
    modes = [module.training for module in net.modules()]
    calibrate(net, [images])
    assert [module.training for module in net.modules()] == modes
    assert net.active_bits == 2
    ranges = [p.detach().clone() for p in net.range_parameters()]
    calibrate(net, [images])  # with dropout on, another draw would give other ranges
    assert all(torch.equal(a, b) for a, b in zip(ranges, net.range_parameters(), strict=True))


def test_norm_statistics_are_updated(make_net, images):
    net = make_net()
    calibrate(net, [images])
    assert net.branches[0].get_submodule("bn1.2").num_batches_tracked.item() == 1
    assert net.stem.stem_bn.num_batches_tracked.item() == 2  # shared: once a bit-width


def test_no_gradients_are_left(make_net, images):
    net = make_net()
    calibrate(net, [images])
    assert all(parameter.grad is None for parameter in net.parameters())


def test_calibrating_again_replaces_the_ranges(make_net, images):
    net = make_net()
    calibrate(net, [100 * images])
    with torch.no_grad():
        net.branches[0].conv1.weight.mul_(2)
        first_range(net, 2).upper.fill_(-7.0)
    calibrate(net, [images])
    assert first_range(net, 2).upper > 0
    reach = 3 * net.branches[0].conv1.weight.std(correction=0).item()
    assert weight_range(net.branches[0].conv1).upper.item() == pytest.approx(reach, rel=1e-6)


def infinite(images):
    images = images.clone()
    images[0, 0, 0, 0] = float("inf")
    return images


@pytest.mark.parametrize(
    ("make_loader", "message"),
    [
        (lambda images: [], r"expected at least one batch of images, got none"),
        (
            lambda images: [images[0]],
            r"expected batches of images .* got Tensor \(3, 8, 8\)",
        ),
        (lambda images: [images[:0]], r"expected batches of images"),
        (lambda images: [{"image": images}], r"expected batches of images .* got dict"),
        (lambda images: [()], r"expected batches of images .* got tuple"),
        (lambda images: [float("nan") * images], r"got a range that is not finite .* check the im"),
        (lambda images: [infinite(images)], r"got a range that is not finite"),
    ],
)
def test_bad_data_leave_the_network_as_it_was(net, images, make_loader, message):
    net.train()
    state = {name: value.clone() for name, value in net.state_dict().items()}
    with pytest.raises(CalibrationError, match=message):
        calibrate(net, make_loader(images))
    assert all(torch.equal(net.state_dict()[name], value) for name, value in state.items())
    assert all(module.training for module in net.modules())
    assert all(m.observer is None for m in net.modules() if isinstance(m, LearnedRange))
    assert net.active_bits == 4


def test_images_of_another_kind_leave_the_network_as_it_was(make_net):
    net = make_net()
    state = {name: value.clone() for name, value in net.state_dict().items()}
    with pytest.raises(CalibrationError, match=r"such as \(1, 3, 8, 8\), got .* \(2, 5, 8, 8\)"):
        calibrate(net, [torch.randn(2, 5, 8, 8)])
    assert all(torch.equal(net.state_dict()[name], value) for name, value in state.items())
    assert not any(m.ready for m in net.modules() if type(m).__name__ == "ActivationRange")


def test_unknown_observer(net, images):
    with pytest.raises(ConfigError, match=r"observer: expected one of \['paper', 'minmax', "):
        calibrate(net, [images], observer="mse")


def test_first_batch_initialisation_without_calibration(make_net, images):
    """A network that is trained without calibration takes each range from the first batch."""
    net = make_net(TinyNet()).train()
    with torch.no_grad():
        net(images)
        x = net.stem(images)
    upper = 3 * x.std(correction=0).item() / math.sqrt(1 - 2 / math.pi)
    assert bounds(first_range(net, 4)) == pytest.approx((0.0, upper), rel=1e-6)  # fp32
    assert not first_range(net, 2).ready  # 2 bits did not run
    assert len([m for m in net.modules() if isinstance(m, SwitchableQuantizer)]) == 4


@pytest.mark.parametrize("profile", ["paper", "finn"])
def test_evaluation_without_calibration_is_refused(make_net, images, profile):
    """It would be set by the first image, and every result would depend on which that was."""
    net = make_net(TinyNet(), profile=profile).eval()
    before = copy.deepcopy(net.state_dict())
    for run in (net, net.view(2), copy.deepcopy(net)):
        with torch.no_grad(), pytest.raises(CalibrationError, match="call calibrate"):
            run(images)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    with torch.no_grad(), net.floating():
        assert net(images).isfinite().all()  # without quantizers there is nothing to set
    calibrate(net, [images])
    with torch.no_grad():
        assert net(images).isfinite().all()


def test_a_range_of_one_bit_width_alone_is_refused_at_another(make_net, images):
    """Training has set those of 4 bits; evaluation at 2 bits has none yet."""
    net = make_net(TinyNet()).train()
    net(images)
    net.eval()
    with torch.no_grad():
        assert net(images).isfinite().all()
        with net.at_bits(2), pytest.raises(CalibrationError, match="seen none"):
            net(images)
