"""Weights without a spread: all 0, all equal, a single one, none of them a number."""

import warnings

import pytest
import torch
from timm.layers import ScaledStdConv2d, StdConv2d
from torch import nn

from brevitas_multiquant import (
    InPlaceDistillation,
    ModelSource,
    calibrate,
    extract_subnet,
    load_packed,
    multiquantize,
    save_packed,
)
from brevitas_multiquant.core.clip_quantize import quantize_weight
from brevitas_multiquant.core.grids import WEIGHT_FORMATS
from brevitas_multiquant.core.panel import Panel
from brevitas_multiquant.errors import CalibrationError, SelfCheckError
from brevitas_multiquant.export import export_qonnx
from brevitas_multiquant.quant.layers import CodeLayer, code_layer
from brevitas_multiquant.quant.ranges import weight_bounds
from brevitas_multiquant.quant.zero_weights import NEGLIGIBLE, move_zeros_apart

SHAPES = {
    "convolution": (8, 4, 3, 3),
    "depthwise": (8, 1, 3, 3),
    "depthwise, one pixel": (8, 1, 1, 1),
    "linear": (5, 7),
    "single": (1, 1, 1, 1),
}
CONSTANTS = [1.0, -1.0, 0.1, -0.1, 1e-3, -3e20]


def codes_and_gradients(weight, form, spread=1.0):
    lower, upper = (b.requires_grad_() for b in weight_bounds(weight, form, spread))
    weight = weight.clone().requires_grad_()
    codes = quantize_weight(weight, lower, upper, form)
    codes.sum().backward()
    return codes.detach(), (weight.grad, lower.grad, upper.grad)


@pytest.mark.parametrize("spread", [1.0, 1.02, 1.06])
@pytest.mark.parametrize("constant", CONSTANTS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", WEIGHT_FORMATS)
def test_equal_weights_are_the_integer_next_to_zero(name, shape, constant, spread):
    """The one of their sign, within the range, so that gradients reach weights and range."""
    weight = torch.full(SHAPES[shape], constant)
    codes, gradients = codes_and_gradients(weight, WEIGHT_FORMATS[name], spread)
    assert codes.unique().tolist() == [1.0 if constant > 0 else -1.0]
    assert all(g.isfinite().all() for g in gradients) and (gradients[0] != 0).all()


@pytest.mark.parametrize("spread", [1.0, 1.02, 1.06])
@pytest.mark.parametrize("size", [0.0, 1e-12, 1e-7])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", ["int2", "ternary"])
def test_zeros_are_0_where_the_format_has_one(name, shape, size, spread):
    """At the range of a layer that starts at random, to which gradients are of usual size."""
    form = WEIGHT_FORMATS[name]
    weight = size * torch.randn(SHAPES[shape]).clamp(-3, 3)
    lower, upper = weight_bounds(weight, form, spread)
    deviation = weight[0].numel() ** -0.5
    reach = form.sigmas * spread * deviation
    ends = [reach * end / form.divisor for end in (form.integers[0], form.integers[-1])]
    assert [lower.item(), upper.item()] == pytest.approx(ends, rel=1e-6)  # fp32
    codes, gradients = codes_and_gradients(weight, form, spread)
    assert codes.unique().tolist() == [0.0]
    expected = form.step * form.levels / (ends[1] - ends[0])
    assert torch.allclose(gradients[0], torch.full_like(weight, expected))


@pytest.mark.parametrize("mean", [1.0, -1.0])
@pytest.mark.parametrize("name", WEIGHT_FORMATS)
def test_no_layer_starts_outside_of_its_range(name, mean):
    """A filter that averages, a little disturbed: all of it beyond three deviations."""
    weight = mean + 0.01 * torch.randn(8, 1, 3, 3).clamp(-3, 3)
    codes, gradients = codes_and_gradients(weight, WEIGHT_FORMATS[name])
    assert codes.unique().tolist() == [mean]
    assert (gradients[0] != 0).all()


@pytest.mark.parametrize("name", WEIGHT_FORMATS)
@pytest.mark.parametrize("size", [1e-4, 1.0, 1e4])
def test_ranges_of_weights_with_a_spread_are_what_they_were(name, size):
    form = WEIGHT_FORMATS[name]
    weight = torch.randn(16, 8, 3, 3) * size + 0.5 * size
    reach = form.sigmas * 1.02 * weight.std(correction=0)
    expected = [reach * (end / form.divisor) for end in (form.integers[0], form.integers[-1])]
    for found, other in zip(weight_bounds(weight, form, 1.02), expected, strict=True):
        assert torch.equal(found, other)


class Block(nn.Module):
    """The last convolution starts at zero, with no norm behind it (Fixup)."""

    def __init__(self, groups=1, kernel=3):
        super().__init__()
        self.c1 = nn.Conv2d(8, 8, 3, padding=1)
        self.c2 = nn.Conv2d(8, 8, kernel, padding=kernel // 2, groups=groups)
        nn.init.zeros_(self.c2.weight)
        nn.init.zeros_(self.c2.bias)

    def forward(self, x):
        return torch.relu(x + self.c2(torch.relu(self.c1(x))))


def fixup(**options):
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), Block(**options), Block(**options)),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10)),
    )


def batch(count=8, seed=1):
    return torch.randn(count, 3, 16, 16, generator=torch.Generator().manual_seed(seed))


def convert(weights, bits=(2, 8), model=None, **options):
    """The network, calibrated, and what was warned of."""
    options = {"source": ModelSource("own", "fixup", {}), **options}
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        net = multiquantize(
            model or fixup(), bits, input_shape=(1, 3, 16, 16), weights=weights, **options
        )
        calibrate(net, [batch()])
    return net, [str(w.message) for w in told if "weights are all 0" in str(w.message)]


def contribution(net, name="2.c2"):
    """What a layer adds to the residual path, and what reaches it there, at 8 bits."""
    layer, seen = net.branches[0].get_submodule(name), []
    hook = layer.register_forward_hook(lambda _m, inputs, output: seen.append((inputs[0], output)))
    with torch.no_grad(), net.eval().at_bits(8):
        net(batch(seed=2))
    hook.remove()
    return seen[0]


@pytest.mark.parametrize("weights", ["int2", "ternary"])
def test_a_residual_branch_of_zeros_adds_nothing(weights):
    net, told = convert(weights)
    assert not told
    for branch in net.branches:
        for name in ("2.c2", "3.c2"):
            layer = branch.get_submodule(name)
            assert not layer.weight.any() and not layer.quant_weight().any()
    _, added = contribution(net)
    assert not added.any()


@pytest.mark.parametrize("options", [{}, {"groups": 8}, {"groups": 2}, {"kernel": 1}], ids=str)
def test_without_a_zero_the_innermost_integers_take_turns(options):
    net, told = convert("odd", model=fixup(**options))
    assert len(told) == 1 and told[0].startswith("2.c2, 3.c2: the weights are all 0")
    assert "odd (-3, -1, 1, 3)" in told[0]
    for branch in net.branches:
        codes = branch.get_submodule("2.c2").quant_weight().flatten()
        assert codes.tolist() == [1.0, -1.0] * (len(codes) // 2)
    codes, added = contribution(net)
    layer = net.branches[0].get_submodule("2.c2")
    with_equal_signs = torch.nn.functional.conv2d(
        codes, torch.ones_like(layer.weight), None, 1, layer.padding, 1, layer.groups
    ).mul(1 / (3 * 255))
    # what is left of the sum of all: a depthwise filter of nine has one sign more than the other
    assert added.abs().mean() < 0.5 * with_equal_signs.abs().mean()


@pytest.mark.parametrize("weights", WEIGHT_FORMATS)
def test_the_image_reaches_the_logits_and_the_original_comes_close(weights):
    model = fixup().eval()
    net, _ = convert(weights, model=model)
    with torch.no_grad(), net.eval().at_bits(8):
        logits, original = net(batch(seed=2)), model(batch(seed=2))
    assert logits.std(0).max() > 0.1 * original.std(0).max()
    together = torch.stack([logits.flatten() - logits.mean(), original.flatten() - original.mean()])
    assert torch.corrcoef(together)[0, 1] > 0.9


def test_conversion_and_calibration_are_deterministic():
    first, told = convert("odd")
    second, _ = convert("odd")
    state = {name: value.clone() for name, value in first.state_dict().items()}
    assert all(torch.equal(v, second.state_dict()[name]) for name, v in state.items())
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # nothing is moved a second time
        calibrate(first, [batch()])
    for name in (n for n in state if n.endswith((".weight", ".lower", ".upper"))):
        assert torch.equal(state[name], first.state_dict()[name]), name
    assert len(told) == 1


def test_zeros_that_were_loaded_later_are_moved_by_calibration():
    model = nn.Sequential(*fixup()[:2], nn.Conv2d(8, 8, 3), *fixup()[4:])
    net, told = convert("odd", model=model)
    assert not told
    net.load_state_dict(
        {
            n: torch.zeros_like(v) if n.endswith("s.1.2.weight") else v
            for n, v in net.state_dict().items()
        }
    )
    with pytest.warns(UserWarning, match=r"^2: the weights are all 0, .* start at 1/3 and -1/3"):
        calibrate(net, [batch()])
    assert net.branches[1].get_submodule("2").quant_weight().sum() == 0


@pytest.mark.parametrize("bits", [(2, 8), (2, 3, 4)])
@pytest.mark.parametrize("weights", WEIGHT_FORMATS)
def test_files_and_subnets_give_the_same_bits(weights, bits, tmp_path):
    net, _ = convert(weights, bits)
    net.eval()
    loaded = load_packed(save_packed(net, tmp_path / "net.safetensors"), fixup())
    for bit in bits:
        with torch.no_grad(), net.at_bits(bit), loaded.at_bits(bit):
            expected = net(batch(seed=2))
            assert torch.equal(loaded(batch(seed=2)), expected)
            assert torch.equal(extract_subnet(net, bit)(batch(seed=2)), expected)
            assert torch.equal(extract_subnet(loaded, bit)(batch(seed=2)), expected)


@pytest.mark.parametrize("weights", ["odd", "int2"])
def test_exports_are_verified(weights, tmp_path):
    """`export_qonnx` runs the file and compares it with the network."""
    net, _ = convert(weights, (2, 4))
    export_qonnx(net.eval(), tmp_path / "out", input_shape=(1, 3, 16, 16))
    assert list((tmp_path / "out").glob("*.onnx"))


@pytest.mark.parametrize("weights", WEIGHT_FORMATS)
@pytest.mark.parametrize("branch_init", ["copy", "shuffle"])
def test_training_leaves_the_zeros(weights, branch_init):
    net, _ = convert(weights, (2, 4), branch_init=branch_init)
    before = [b.get_submodule("2.c2").quant_weight().clone() for b in net.branches]
    task = InPlaceDistillation(net.train())
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    labels = torch.arange(16) % 4  # told by two colours
    colours = torch.stack([labels % 2, labels // 2, torch.zeros(16)], 1) * 2.0
    images = 0.5 * batch(16) + colours[:, :, None, None]
    losses = []
    for _ in range(40):
        optimizer.zero_grad()
        loss = task(images, labels)["loss"]
        loss.backward()
        if not losses:
            used = [b.get_submodule("2.c2").weight.grad for b in net.branches]
            assert all(g is not None and g.isfinite().all() and g.any() for g in used)
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    after = [b.get_submodule("2.c2").quant_weight() for b in net.branches]
    assert all((one != two).float().mean() > 0.2 for one, two in zip(before, after, strict=True))


def test_standardised_weights_without_a_spread():
    """Equal weights standardise to 0, and so does a gain of 0: signs come from below both."""
    equal, gainless = StdConv2d(4, 8, 3), ScaledStdConv2d(4, 8, 3)
    with torch.no_grad():
        equal.weight.fill_(0.5)
        gainless.gain.zero_()
    layers = nn.ModuleList(code_layer(conv, Panel(4)) for conv in (equal, gainless))
    author = gainless.weight.clone()
    assert move_zeros_apart(layers) == ["0", "1"] and move_zeros_apart(layers) == []
    for layer in layers:
        codes = layer.quant_weight()
        assert codes.abs().sum() > 0 and codes.mean().abs() < 0.2
        assert set(codes.unique().tolist()) >= {-1.0, 1.0}
    assert torch.equal(layers[1].weight, author)


def test_only_zeros_of_a_format_without_a_zero_are_moved():
    """Not weights that are larger, not constants, not layers of another format."""
    kinds = {"small": 2 * NEGLIGIBLE, "constant": 0.3, "zeros": 0.0}
    layers = nn.ModuleDict()
    for name, value in kinds.items():
        for form in WEIGHT_FORMATS.values():
            linear = nn.Linear(4, 4)
            nn.init.constant_(linear.weight, value)
            layers[f"{name}_{form.name}"] = code_layer(linear, Panel(4), form)
    before = {name: layer.weight.clone() for name, layer in layers.items()}
    assert move_zeros_apart(layers) == ["zeros_odd"]
    changed = [n for n, layer in layers.items() if not torch.equal(before[n], layer.weight)]
    assert changed == ["zeros_odd"]
    assert layers["zeros_odd"].weight.abs().unique().tolist() == [pytest.approx(NEGLIGIBLE)]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("where", ["0.weight", "2.c1.weight", "3.c2.bias", "6.weight"])
def test_weights_that_are_not_finite_are_named_at_conversion(where, value):
    model = fixup()
    with torch.no_grad():
        model.get_parameter(where).view(-1)[:2] = value
    count = model.get_parameter(where).numel()
    message = rf"^Sequential: expected finite weights, got .* in {where} \(2 of {count}\);"
    with pytest.raises(SelfCheckError, match=message):
        multiquantize(model, [2, 4], input_shape=(1, 3, 16, 16), weights="int2")


@pytest.mark.parametrize("weights", WEIGHT_FORMATS)
def test_weights_that_diverged_are_named_by_calibration(weights):
    net, _ = convert(weights)
    layer = next(m for m in net.branches[1].modules() if isinstance(m, CodeLayer))
    with torch.no_grad():
        layer.weight.view(-1)[0] = float("nan")
    with pytest.raises(CalibrationError, match=r"branches\.1\.2\.c1.* not finite \(nan, nan\)"):
        calibrate(net, [batch()])
