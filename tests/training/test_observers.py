"""Each observer of `calibrate` proposes a range for the bits of the quantizer that it watches."""

import math

import pytest
import torch
from torch.ao.quantization.observer import HistogramObserver

from brevitas_multiquant import calibrate
from brevitas_multiquant.profiles.finn.quantizers import FixedPointValues
from brevitas_multiquant.quant.ranges import ActivationRange
from brevitas_multiquant.quant.tensor_quant import ActivationCodes
from brevitas_multiquant.training.calibrate import OBSERVERS, activation_ranges

BITS = (2, 3, 4, 8)
EDGE = 8


@pytest.fixture
def finn_net(make_net):
    return make_net(bits=(2, 4), profile="finn")


def quantizers(net, bits):
    """The quantizers in use at a bit-width, with a recorder of what each of them reads."""
    ranges = set(activation_ranges(net, bits))
    return [m for m in net.modules() if getattr(m, "range_impl", None) in ranges]


def image_quantizer(net):
    return next(m for m in net.stem.image_quant.modules() if isinstance(m, FixedPointValues))


@pytest.mark.parametrize("name", OBSERVERS)
def test_the_levels_are_the_quantizers_own(finn_net, images, name, monkeypatch):
    asked = []
    make = OBSERVERS[name]
    monkeypatch.setitem(OBSERVERS, name, lambda *own: asked.append(own) or make(*own))
    calibrate(finn_net, [images], observer=name)
    expected = {}
    for bits in finn_net.bits:
        for quantizer in quantizers(finn_net, bits):
            signed = getattr(quantizer, "signed", False)
            expected[quantizer.range_impl] = (2**quantizer.bits - 1, signed)
    assert {learned: tuple(rest) for learned, *rest in asked} == expected
    levels = {levels for levels, _ in expected.values()}
    assert levels == {3, 15, 63, 255}  # codes, operands two bits wider, and the edges
    assert {signed for _, signed in expected.values()} == {True, False}


def test_minmax_reaches_the_largest_magnitude_of_the_image(finn_net, images):
    """At 2 and at 4 bits alike: an image has 8."""
    calibrate(finn_net, [images], observer="minmax")
    learned = image_quantizer(finn_net).range_impl
    reach = images.abs().max().item()
    # max / 127.5 and back in fp32
    assert (learned.lower.item(), learned.upper.item()) == pytest.approx((-reach, reach), rel=1e-6)


@pytest.mark.parametrize("name", ["minmax", "moving_average"])
@pytest.mark.parametrize("reach", [0.5, 1.0, 2.0])
def test_images_that_end_at_a_power_of_two_keep_all_eight_bits(finn_net, images, name, reach):
    """A step more would double the scale."""
    calibrate(finn_net, [images.clamp(-1, 1) * reach], observer=name)
    assert image_quantizer(finn_net).scale.item() == reach / 2 ** (EDGE - 1)


def data():
    generator = torch.Generator().manual_seed(5)
    return [torch.rand(5000, generator=generator) * 3 - 1 for _ in range(2)]


@pytest.mark.parametrize("bits", BITS)
def test_bounds_of_an_asymmetric_quantizer(bits):
    """From the smallest to the largest value, moved so that 0 is an integer."""
    levels = 2**bits - 1
    lowest = min(x.min().item() for x in data())
    highest = max(x.max().item() for x in data())
    scale = (highest - lowest) / levels
    zero = round(-lowest / scale)
    observer = OBSERVERS["minmax"](ActivationRange(), levels, False)
    for x in data():
        observer.observe(x)
    found = [bound.item() for bound in observer.bounds()]
    assert found == pytest.approx([-zero * scale, (levels - zero) * scale], rel=1e-6)  # fp32


@pytest.mark.parametrize("bits", BITS)
def test_bounds_of_a_symmetric_quantizer(bits):
    reach = max(x.abs().max().item() for x in data())
    observer = OBSERVERS["minmax"](ActivationRange(), 2**bits - 1, True)
    for x in data():
        observer.observe(x)
    found = [bound.item() for bound in observer.bounds()]
    assert found == pytest.approx([-reach, reach], rel=1e-6)  # fp32


@pytest.mark.parametrize("symmetric", [False, True])
def test_a_moving_average_keeps_most_of_the_first_batch(symmetric):
    first, second = torch.tensor([-1.0, 2.0]), torch.tensor([-3.0, 6.0])
    observer = OBSERVERS["moving_average"](ActivationRange(), 255, symmetric)
    for x in (first, second):
        observer.observe(x)
    highest = 2.0 + 0.01 * (6.0 - 2.0)  # torch's averaging constant
    lower, upper = (bound.item() for bound in observer.bounds())
    step = (highest + 1.02) / 255
    assert upper == pytest.approx(highest, abs=step / 2 * (not symmetric), rel=1e-6)
    assert lower == pytest.approx(-highest if symmetric else -1.02, abs=step / 2, rel=1e-6)


@pytest.mark.parametrize("symmetric", [False, True])
def test_a_histogram_proposes_what_torch_says(symmetric):
    x = torch.cat([torch.randn(20_000, generator=torch.Generator().manual_seed(1)), torch.ones(1)])
    x[-1] = 40.0
    observer = OBSERVERS["histogram"](ActivationRange(), 15, symmetric)
    scheme = torch.per_tensor_symmetric if symmetric else torch.per_tensor_affine
    oracle = HistogramObserver(dtype=torch.quint8, qscheme=scheme, quant_min=0, quant_max=15)
    observer.observe(x)
    oracle(x)
    scale, zero = (value.item() for value in oracle.calculate_qparams())
    lower, upper = (bound.item() for bound in observer.bounds())
    middle = 7.5 if symmetric else zero
    assert (lower, upper) == pytest.approx((-middle * scale, (15 - middle) * scale), rel=1e-6)
    assert x[:-1].max() < upper < 42  # at most a step above the outlier


def test_the_papers_rule_asks_for_no_levels():
    learned = ActivationRange()
    observer = OBSERVERS["paper"](learned, 3, False)
    x = torch.tensor([0.0, 2.0, 0.0, 2.0])
    observer.observe(x)
    expected = (0.0, 3 / math.sqrt(1 - 2 / math.pi))
    assert tuple(b.item() for b in observer.bounds()) == pytest.approx(expected, rel=1e-6)  # fp32


def test_codes_of_the_papers_profile_have_the_bits_that_run(net):
    for bits in net.bits:
        own = quantizers(net, bits)
        assert own and all(isinstance(m, ActivationCodes) and m.bits == bits for m in own)
