"""Networks of one body whose weights follow the bit-width, against their formulas in fp64."""

import copy
import pickle
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from brevitas_multiquant import (
    Assignment,
    InPlaceDistillation,
    MultiQuantConfig,
    MultiQuantNet,
    calibrate,
    cost,
    extract_subnet,
    multiquantize,
)
from brevitas_multiquant.core.grids import odd
from brevitas_multiquant.cost.inventory import inventory_of
from brevitas_multiquant.errors import BitWidthError, ConfigError, SelectionError
from brevitas_multiquant.nn import SwitchableNorm, SwitchableQuantizer
from brevitas_multiquant.quant.layers import CodeLayer, weight_range
from brevitas_multiquant.quant.proxies import activation_tensor_quant
from tests.formulas import activation_values_of, weight_values
from tests.tiny import IMAGE, TinyNet

MIXED = Assignment(4, {"conv1": (3, 8), "conv2": (5, 2)})
KINDS: dict[str, dict[str, Any]] = {
    "individual": {"bits": [4], "method": "individual"},
    "assigned": {"bits": MIXED},
    "centered": {"bits": [2, 3, 4, 8], "method": "adabits"},
    "modified": {"bits": [2, 4, 8], "method": "adabits", "grid": "modified"},
    "original": {"bits": [2, 4, 8], "method": "adabits", "grid": "original"},
    "tanh": {"bits": [2, 4, 8], "method": "adabits", "weight_range": "tanh"},
    "any_precision": {"bits": [1, 2, 4, 8], "method": "any_precision"},
    "any_precision, as others": {
        **{"bits": [2, 4], "method": "any_precision", "shortcuts": "quantized"},
        **{"weight_range": "learned", "activation_range": "learned"},
    },
    "double_rounding": {"bits": [2, 3, 6], "method": "double_rounding"},
    "vertical_layering": {"bits": [2, 3, 6], "method": "vertical_layering"},
}
every_kind = pytest.mark.parametrize("kind", KINDS)


def made(kind: str, images: Tensor) -> MultiQuantNet:
    net = multiquantize(TinyNet(), input_shape=IMAGE, **KINDS[kind])
    calibrate(net, [images])
    return net.eval()


def conv2d(layer: nn.Conv2d, x: Tensor, weight: Tensor) -> Tensor:
    bias = None if layer.bias is None else layer.bias.double()
    return F.conv2d(x, weight, bias, layer.stride, layer.padding)


class Formulas(fx.Interpreter):
    """Runs a body in the domain of values, all in fp64."""

    def __init__(self, part: Any, net: MultiQuantNet, assignment: Assignment) -> None:
        super().__init__(part)
        self.net, self.assignment = net, assignment

    def call_module(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        module: Any = self.fetch_attr(target)
        (x,), bits = args, str(self.assignment.bits)
        if isinstance(module, SwitchableQuantizer):
            learned = activation_tensor_quant(module[bits]).range_impl
            kind, own = self.net.config.activation_range or "learned", module.dial.site
            numbers = (
                [learned.lower, *learned.parameters()] if kind == "step" else learned.parameters()
            )
            return activation_values_of(
                x, kind, [n.double() for n in numbers], int(bits), self.assignment[own].activation
            )
        if isinstance(module, CodeLayer):
            config, numbers = self.net.config, weight_range(module).parameters()
            weight = weight_values(
                module.weight.double(),
                config.weight_range or "learned",
                [number.double() for number in numbers],
                config.grid or "original",
                self.assignment[module.input_dial.site].weight,
                max(config.bits),
            )
            return conv2d(module, x, weight)
        if isinstance(module, nn.Conv2d):
            return conv2d(module, x, module.weight.double())
        if isinstance(module, SwitchableNorm):
            norm: Any = module[bits]
            numbers = (norm.running_mean, norm.running_var, norm.weight, norm.bias)
            return F.batch_norm(x, *(n.double() for n in numbers), training=False, eps=norm.eps)
        return module(x)


@every_kind
@torch.no_grad()
def test_every_bit_width_is_what_the_formulas_say(kind: str, images: Tensor) -> None:
    net, found = made(kind, images), []
    for bits in net.bits:
        with net.at_bits(bits):
            body = Formulas(net.branches[0], net, net.assignment).run(net.stem(images).double())
            logits = net(images)
            # fp32 sums of some tens of terms against fp64
            torch.testing.assert_close(logits, net.head(body.float()), rtol=1e-4, atol=1e-5)
            assert net.assignment == Assignment.uniform(net, bits)
        assert torch.equal(extract_subnet(net, bits)(images), logits)
        assert torch.equal(net.view(bits)(images), logits)
        found.append(logits)
    assert len({tuple(logits.flatten().tolist()) for logits in found}) == len(net.bits)


@every_kind
def test_a_step_reaches_every_parameter(kind: str, images: Tensor) -> None:
    net = made(kind, images).train()
    before = copy.deepcopy(net.state_dict())
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    out = InPlaceDistillation(net).step(images, torch.arange(len(images)))
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())
    optimizer.step()
    moved = [n for n, p in net.named_parameters() if not torch.equal(p, before[n])]
    assert "branches.0.conv1.weight" in moved
    ranges = {id(parameter) for parameter in net.range_parameters()}
    named = {name for name, p in net.named_parameters() if id(p) in ranges}
    assert named == {name for name, _ in net.named_parameters() if "range_impl" in name}
    assert bool(named & set(moved)) == bool(named)
    assert sorted(out["outputs"]) == list(net.bits)


@every_kind
def test_bits_of_weights_and_activations_are_counted(kind: str, images: Tensor) -> None:
    """Bit operations are MACs x weight bits x activation bits, those of float layers left out."""
    net = made(kind, images)
    costs = cost(net)
    for bits in net.bits:
        with net.at_bits(bits):
            own = dict(net.assignment)
        layers = inventory_of(net, IMAGE).branches[bits]
        site_of = {"conv1": "conv1", "shortcut": "conv1", "conv2": "conv2"}
        expected = 0
        for layer in layers:
            if layer.is_float:
                assert layer.name == "shortcut" and kind == "any_precision"
                continue
            weight, activation = layer.bits_at(bits)
            assert (weight, activation) == tuple(own[site_of[layer.name]])
            expected += layer.macs * weight * activation
        assert costs[bits].bitops == expected > 0


@every_kind
@torch.no_grad()
def test_copies_run_alone(kind: str, images: Tensor) -> None:
    net = made(kind, images)
    net.set_active_bits(min(net.bits))
    low = net(images)
    for copied in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert copied.active_bits == min(net.bits) and torch.equal(copied(images), low)
        net.set_active_bits(max(net.bits))
        assert torch.equal(copied(images), low)
        net.set_active_bits(min(net.bits))
        assert copied.config == net.config


@pytest.mark.parametrize("kind", ["centered", "any_precision", "double_rounding"])
def test_a_step_within_autocast(kind: str, images: Tensor) -> None:
    """Integers of 8 bits and their sums are exact in evaluation whatever autocast asks for."""
    net = made(kind, images).train()
    with torch.autocast("cpu", torch.bfloat16):
        InPlaceDistillation(net).step(images, torch.arange(len(images)))
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())
    net.eval()
    for bits in net.bits:
        with torch.no_grad(), net.at_bits(bits):
            conv = net.branches[0].conv2
            codes = torch.randint(0, 2**bits, (2, 6, 4, 4)).float()
            expected = conv(codes)
            with torch.autocast("cpu", torch.bfloat16):
                assert torch.equal(conv(codes), expected)


def test_what_any_precision_leaves_float(images: Tensor) -> None:
    """Stem, classifier and shortcuts as published; in the plan, and in what a layer is."""
    net = made("any_precision", images)
    assert type(net.branches[0].shortcut) is nn.Conv2d
    treatments = {layer.name: layer.treatment for layer in net.plan.layers}
    quantized = "weights of 1, 2, 4, 8 bits"
    assert treatments == {
        **{"stem": "float, shared", "fc": "float, shared", "shortcut": "float"},
        **{"conv1": quantized, "conv2": quantized},
    }
    assert net.branches[0].shortcut.weight.data_ptr() != TinyNet().shortcut.weight.data_ptr()
    assert net.sites == ("conv1", "conv2")
    for said in ("method='any_precision'", "grid='original'", "shortcuts='float'"):
        assert said in repr(net) and "merge=" not in repr(net).split("(stem)")[0]


class TestAssignments:
    @torch.no_grad()
    def test_weights_and_activations_of_a_site_are_chosen_apart(self, images: Tensor) -> None:
        net, found = made("centered", images), set()
        for pair in ((2, 8), (8, 2), (3, 4), (8, 8)):
            assignment = Assignment(8, {"conv1": (8, 8), "conv2": pair})
            with net.at_bits(assignment):
                assert net.assignment == assignment
                logits = net(images)
                codes = net.branches[0].conv2.quant_weight()
                body = Formulas(net.branches[0], net, assignment).run(net.stem(images).double())
            torch.testing.assert_close(logits, net.head(body.float()), rtol=1e-4, atol=1e-5)
            assert torch.equal(extract_subnet(net, assignment)(images), logits)
            assert codes.abs().max() < 2 ** pair[0] and bool((codes % 2 == 1).all())
            found.add(tuple(logits.flatten().tolist()))
        assert len(found) == 4

    def test_an_individual_network_has_but_one(self, images: Tensor) -> None:
        net = made("assigned", images)
        assert net.bits == (4,) and net.setting == 4 and net.assignment == MIXED
        assert net.config.method == "individual" and net.config.assignment == MIXED
        assert MultiQuantConfig.from_dict(net.config.to_dict()) == net.config
        layers = {n: m for n, m in net.branches[0].named_modules() if isinstance(m, CodeLayer)}
        assert {name: layer.weight_format for name, layer in layers.items()} == {
            "conv1": odd(3),
            "shortcut": odd(3),
            "conv2": odd(5),
        }
        for setting in (4, MIXED, Assignment(4, {"conv1": (3, 8)})):
            with net.at_bits(setting):
                assert net.assignment == MIXED
        with pytest.raises(BitWidthError, match=r"conv2: expected the \(5, 2\) bits that it was"):
            net.set_active_bits(Assignment(4, {"conv2": (4, 2)}))
        copied = copy.deepcopy(net)
        assert copied.assignment == MIXED and torch.equal(copied(images), net(images))


class TestWeightsOfZero:
    """Grids without a 0 say so, each by its own name; one that has it starts there."""

    @staticmethod
    def model() -> TinyNet:
        model = TinyNet()
        nn.init.zeros_(model.conv2.weight)
        return model

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"bits": [2, 4], "method": "adabits"}, r"conv2: .* centered \(-15, -13, ..., 15\)"),
            ({"bits": [3], "method": "individual"}, r"conv2: .* start at 1/7 and -1/7 in turn"),
        ],
    )
    def test_there_is_none(self, options: dict[str, Any], message: str) -> None:
        with pytest.warns(UserWarning, match=message):
            net = multiquantize(self.model(), input_shape=IMAGE, **options)
        assert net.branches[0].conv2.quant_weight().abs().max() == 1

    @pytest.mark.parametrize(
        "options",
        [
            {"bits": [2, 4], "method": "adabits", "grid": "modified"},
            {"bits": [2, 4], "method": "double_rounding"},
        ],
    )
    @pytest.mark.filterwarnings("error")
    def test_there_is_one(self, options: dict[str, Any]) -> None:
        net = multiquantize(self.model(), input_shape=IMAGE, **options)
        for bits in net.bits:
            with net.at_bits(bits):
                assert not net.branches[0].conv2.quant_weight().any()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"bits": [2, 4], "method": "individual"}, BitWidthError, "expected one bit-width, as the"),
        ({"bits": [1, 4], "method": "adabits"}, BitWidthError, r"expected 2 to 16, got 1 in"),
        (
            {"bits": [2], "grid": "centered"},
            ConfigError,
            r"grid: expected none for the method 'multiquant', .* an option of \['individual', ",
        ),
        ({"bits": [2], "method": "adabits", "grid": "even"}, ConfigError, "grid: expected one of"),
        (
            {"bits": [2], "method": "any_precision", "grid": "centered"},
            ConfigError,
            r"grid: expected one of \['original'\]",
        ),
        (
            {"bits": [2], "method": "adabits", "weight_range": "step"},
            ConfigError,
            r"weight_range: expected one of \['learned', 'tanh'\], got 'step'",
        ),
        (
            {"bits": [2], "method": "double_rounding", "shortcuts": "float"},
            ConfigError,
            r"shortcuts: expected none .* of \['any_precision'\]",
        ),
        (
            {"bits": [2], "method": "any_precision", "profile": "finn"},
            ConfigError,
            "shortcuts: expected 'quantized' with the profile 'finn'",
        ),
        ({"bits": [1, 8], "method": "double_rounding"}, BitWidthError, "expected 2 to 16, got 1"),
        (
            {"bits": [1], "method": "individual", "grid": "integer"},
            BitWidthError,
            "grid: expected 2 to 16 bits, got 1",
        ),
        ({"bits": [0, 8], "method": "any_precision"}, BitWidthError, "expected 1 to 16, got 0"),
        (
            {"bits": [2], "method": "adabits", "weights": "int2"},
            ConfigError,
            r"weights: expected none for the method 'adabits', .* of \['multiquant'\]",
        ),
        (
            {"bits": [2], "method": "individual", "merge": "sum"},
            ConfigError,
            r"merge: expected none .*'multiquant'",
        ),
        (  # the other methods' default, said aloud, is no less of another method
            {"bits": [2], "method": "adabits", "weights": "odd"},
            ConfigError,
            r"weights: expected none for the method 'adabits', got 'odd'",
        ),
        (
            {"bits": [2], "method": "bit_mixer", "selection": "serial"},
            SelectionError,
            "selection: expected none, as this method has one body, got 'serial'",
        ),
        (
            {"bits": MIXED, "method": "adabits"},
            ConfigError,
            r"assignment: expected none for the method 'adabits'.*'individual'",
        ),
        ({"bits": Assignment(4, {"conv1": (3, 17)})}, BitWidthError, r"conv1: expected at most 16"),
        ({"bits": Assignment(4, {"conv3": (3, 4)})}, BitWidthError, r"got 'conv3'; did you mean"),
    ],
)
def test_what_a_method_has_not_is_refused(
    options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        multiquantize(TinyNet(), input_shape=IMAGE, **options)
