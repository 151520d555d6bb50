"""Bit-Mixer: any layer at any bits, norms by pairs of them, against formulas in fp64."""

import copy
import itertools
import pickle
import random
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from brevitas_multiquant import (
    Assignment,
    MultiQuantConfig,
    MultiQuantNet,
    calibrate,
    cost,
    extract_subnet,
    load_packed,
    multiquantize,
    objective_of,
    save_packed,
)
from brevitas_multiquant.core.float_model import ModelSource
from brevitas_multiquant.errors import BitWidthError, ConfigError
from brevitas_multiquant.export import check_finn, export_finn, export_qonnx
from brevitas_multiquant.nn import SwitchableNorm, SwitchableQuantizer
from brevitas_multiquant.quant.layers import CodeLayer, weight_range
from brevitas_multiquant.quant.proxies import activation_tensor_quant
from brevitas_multiquant.training.norm_statistics import assigned_norms
from brevitas_multiquant.training.random_assignments import RandomAssignments
from tests.reference import activation_values, clip
from tests.tiny import IMAGE

BITS = (2, 3, 4)
STEPS, LR = 20, 0.05


class TwoBlocks(nn.Module):
    """A residual block with an identity shortcut, and a convolution that reads it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1, bias=False)
        self.stem_bn = nn.BatchNorm2d(4)
        self.conv1 = nn.Conv2d(4, 4, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(4)
        self.conv2 = nn.Conv2d(4, 4, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(4)
        self.conv3 = nn.Conv2d(4, 6, 3, stride=2)
        self.bn3 = nn.BatchNorm2d(6)
        self.fc = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem_bn(self.stem(x)))
        y = torch.relu(self.bn1(self.conv1(x)))
        x = torch.relu(self.bn2(self.conv2(y)) + x)
        x = torch.relu(self.bn3(self.conv3(x)))
        return self.fc(x.mean((2, 3)))


BETWEEN = {"bn1": ("conv1", "conv2"), "bn2": ("conv2", "conv3"), "bn3": ("conv3", "conv3")}
"""Norm -> the layer in front of it, and the one behind: none is behind the last one."""

NAMES = {
    "transitional": lambda own, following, bits: f"{own}_{following}",
    "own": lambda own, following, bits: f"{own}",
    "bits": lambda own, following, bits: f"{bits}",
}


def made(norms: str = "transitional", **options: Any) -> MultiQuantNet:
    """Calibrated, with norms that do something, each another one; in evaluation mode."""
    torch.manual_seed(0)
    net = multiquantize(
        *(TwoBlocks(), BITS),
        method="bit_mixer",
        norms=norms,
        input_shape=IMAGE,
        source=ModelSource("own", "TwoBlocks"),
        **options,
    )
    calibrate(net, [torch.randn(8, *IMAGE[1:])])
    for norm in net.branches.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.uniform_(norm.bias, -0.2, 0.2)
            nn.init.uniform_(norm.running_var, 0.5, 1.5)
    return net.eval()


def drawn(net: MultiQuantNet, seed: int) -> Assignment:
    draw = random.Random(seed)
    own = {site: draw.choice(net.bits) for site in net.sites}
    return Assignment(draw.choice(net.bits), {site: (b, b) for site, b in own.items()})


def weight_values(weight: Tensor, lower: Tensor, upper: Tensor, bits: int) -> Tensor:
    """The middles of 2**b equal bins, straight through the choice of the bin."""
    place = 2**bits * clip((weight - lower) / (upper - lower))
    bin_of = place + (place.floor().clamp(max=2**bits - 1) - place).detach()
    return (2 * bin_of + 1) / 2**bits - 1


class Formulas(fx.Interpreter):
    """Runs a body in the domain of values with autograd, from the parameters of a network."""

    def __init__(self, net: MultiQuantNet, assignment: Assignment) -> None:
        super().__init__(net.branches[0])
        self.net, self.assignment = net, assignment

    def bits_at(self, site: str) -> int:
        return self.assignment[site].activation if site in self.assignment else self.assignment.bits

    def call_module(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        module: Any = self.fetch_attr(target)
        (x,) = args
        if isinstance(module, SwitchableQuantizer):
            bits = self.bits_at(module.dial.site)
            learned = activation_tensor_quant(module[str(bits)]).range_impl
            return activation_values(x, learned.lower.to(x), learned.upper.to(x), bits)
        if isinstance(module, CodeLayer):
            learned = weight_range(module)
            ends = learned.lower.to(x), learned.upper.to(x)
            weight = weight_values(module.weight.to(x), *ends, self.bits_at(target))
            bias = None if module.bias is None else module.bias.to(x)
            return F.conv2d(x, weight, bias, module.stride, module.padding)
        if isinstance(module, SwitchableNorm):
            own, following = (self.bits_at(site) for site in BETWEEN[target])
            norms = self.net.config.norms
            norm: Any = module[NAMES[norms](own, following, self.assignment.bits)]
            if norm.training:
                norm.num_batches_tracked += 1
                statistics = norm.running_mean, norm.running_var
            else:
                statistics = norm.running_mean.to(x), norm.running_var.to(x)
            affine = norm.weight.to(x), norm.bias.to(x)
            return F.batch_norm(x, *statistics, *affine, norm.training, 0.1, norm.eps)
        return module(x)


@pytest.mark.parametrize("norms", NAMES)
@torch.no_grad()
def test_any_assignment_is_what_the_formulas_say(norms: str, images: Tensor) -> None:
    net, found = made(norms), set()
    for one in [Assignment.uniform(net, 3), *(drawn(net, seed) for seed in range(8))]:
        with net.at_bits(one):
            assert net.assignment == one
            body = Formulas(net, one).run(net.stem(images).double())
            logits = net(images)
        # fp32 sums of some tens of terms against fp64
        torch.testing.assert_close(logits, net.head(body.float()), rtol=1e-4, atol=1e-5)
        assert torch.equal(extract_subnet(net, one)(images), logits)
        assert torch.equal(net.view(one)(images), logits)
        found.add(tuple(logits.flatten().tolist()))
    assert len(found) > 6


def test_which_norms_there_are_and_which_run(images: Tensor) -> None:
    pairs = ["_".join(map(str, pair)) for pair in itertools.product(BITS, repeat=2)]
    expected = {"transitional": pairs, "own": list(map(str, BITS)), "bits": list(map(str, BITS))}
    mixed = Assignment(3, {"conv1": (2, 2), "conv2": (4, 4)})  # conv3 is left out: 3 bits
    running = {
        "transitional": {"bn1": "2_4", "bn2": "4_3", "bn3": "3_3"},
        "own": {"bn1": "2", "bn2": "4", "bn3": "3"},
        "bits": {"bn1": "3", "bn2": "3", "bn3": "3"},
    }
    for norms, names in expected.items():
        net, ran = made(norms), {}
        for name, module in net.branches[0].named_modules():
            if isinstance(module, SwitchableNorm):
                assert list(module) == names
                for member, norm in module.items():
                    where = (name, member)
                    norm.register_forward_hook(lambda *_, w=where, ran=ran: ran.update([w]))
        with torch.no_grad(), net.at_bits(mixed):
            net(images)
        assert ran == running[norms]


def cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    shares = logits.exp() / logits.exp().sum(1, keepdim=True)
    return -sum(shares[row, label].log() for row, label in enumerate(target)) / len(target)


def distillation(student: Tensor, teacher: Tensor) -> Tensor:
    wanted = (teacher.exp() / teacher.exp().sum(1, keepdim=True)).detach()
    got = student.exp() / student.exp().sum(1, keepdim=True)
    return -(wanted * got.log()).sum() / len(student)


def test_twenty_steps_against_formulas_and_autograd() -> None:
    """Five epochs of four steps; the first two run the network whole."""
    net = made().double().train()
    reference = copy.deepcopy(net)
    task = RandomAssignments(net, uniform=0.4)
    optimizer = torch.optim.SGD(net.parameters(), LR)
    generator = torch.Generator().manual_seed(1)
    mixed = 0
    for number in range(STEPS):
        images = torch.rand(8, *IMAGE[1:], generator=generator, dtype=torch.float64)
        target = torch.arange(8) % 5
        epoch, step = divmod(number, 4)
        task.at(epoch, 5, step, seed=7)
        optimizer.zero_grad()
        total = task.step(images, target)["loss"]
        optimizer.step()

        probability = max(0, (epoch - 2 + 1) / 3)
        loss, teacher = 0.0, None
        for bits in (4, 3, 2):
            sites = dict.fromkeys(net.sites, bits)
            if bits < 4 and probability:
                draw = random.Random(f"{(7, epoch, 5, step)} {bits}")
                for site in sites:
                    if draw.random() < probability:
                        sites[site] = draw.choice(BITS)
            mixed += len(set(sites.values())) > 1
            one = Assignment(bits, {site: (own, own) for site, own in sites.items()})
            output = reference.head(Formulas(reference, one).run(reference.stem(images)))
            loss = loss + cross_entropy(output, target)
            if teacher is None:
                teacher = output.detach()
            else:
                loss = loss + distillation(output, teacher)
        torch.testing.assert_close(total, loss.detach(), rtol=1e-9, atol=1e-12)
        loss.backward()
        with torch.no_grad():
            for parameter in reference.parameters():
                if parameter.grad is not None:
                    parameter -= LR * parameter.grad
                    parameter.grad = None
    assert mixed > 10
    theirs = reference.state_dict()
    for name, value in net.state_dict().items():
        # float64; sums of gradients in another order, over 20 steps
        torch.testing.assert_close(value, theirs[name], rtol=1e-8, atol=1e-10)


def test_the_method_trains_so() -> None:
    task = objective_of(made(), uniform=0.25)
    assert isinstance(task, RandomAssignments) and task.uniform == 0.25


def test_stored_are_the_largest_bits_integers_and_all_norms(images: Tensor, tmp_path) -> None:
    net = made()
    costs = cost(net)
    weights, channels = 4 * 4 * 9 * 2 + 4 * 6 * 9, 4 + 4 + 6
    rest = 4 * (3 * 4 * 9 + 2 * 4) + 4 * (6 * 5 + 5) + 4 * 6  # stem, head, the bias of conv3
    ranges = 4 * 2 * (3 + 3 * len(BITS))
    assert costs.file_bytes == weights * 4 // 8 + 4 * 2 * channels * 9 + rest + ranges
    path = save_packed(net, tmp_path / "mixer.safetensors")
    loaded = load_packed(path, TwoBlocks())
    assert loaded.config == net.config and loaded.sites == net.sites
    for seed in range(4):
        one = drawn(net, seed)
        with torch.no_grad(), net.at_bits(one), loaded.at_bits(one):
            assert torch.equal(loaded(images), net(images))


def test_cost_of_an_assignment() -> None:
    net = made()
    one = Assignment(4, {"conv1": (2, 2), "conv2": (3, 3)})
    conv12, conv3 = 64 * 4 * 36, 9 * 6 * 36
    assert cost(net, assignments=[one]).assignments[one].bitops == (
        conv12 * (2 * 2 + 3 * 3) + conv3 * 4 * 4
    )


def test_it_is_copied_and_viewed_like_any_network(images: Tensor) -> None:
    net, one = made(), drawn(made(), 5)
    with torch.no_grad(), net.at_bits(one):
        expected = net(images)
    for other in (copy.deepcopy(net), pickle.loads(pickle.dumps(net)), net.view().view()):
        with torch.no_grad(), other.at_bits(one):
            assert torch.equal(other(images), expected)
        assert other.active_bits == net.active_bits == 4


def test_files_of_random_assignments_are_verified(tmp_path) -> None:
    net = made()
    chosen = [drawn(net, seed) for seed in (1, 2)]
    files = export_qonnx(net, tmp_path, bits=[], assignments=chosen)
    assert len({path.name for path in files.values()}) == 2


def test_on_hardware(tmp_path) -> None:
    """The project itself is compared with torch: a difference of 0."""
    net = made(profile="finn")
    chosen = [drawn(net, seed) for seed in (1, 2)]
    assert check_finn(net, assignments=chosen) == []
    projects = export_finn(net, tmp_path, bits=[], assignments=chosen, estimate=False)
    assert all((project / "model.onnx").exists() for project in projects.values())


def test_statistics_of_an_assignments_own(images: Tensor) -> None:
    """Two assignments that share a pair of bits do not share these norms."""
    net = made()
    first = Assignment(2, {"conv1": (2, 2), "conv2": (4, 4), "conv3": (3, 3)})
    second = Assignment(2, {"conv1": (2, 2), "conv2": (4, 4), "conv3": (4, 4)})
    views = [assigned_norms(net, one, [images]) for one in (first, second)]
    states = [view.state_dict() for view in (net, *views)]
    changed = [
        {name for name, value in state.items() if not torch.equal(value, states[0][name])}
        for state in states[1:]
    ]
    ran = [{"bn1.2_4", "bn2.4_3", "bn3.3_3"}, {"bn1.2_4", "bn2.4_4", "bn3.4_4"}]
    for names, members in zip(changed, ran, strict=True):
        assert {name.removeprefix("branches.0.").rsplit(".", 1)[0] for name in names} == members


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (
            {"norms": "next"},
            ConfigError,
            r"norms: expected one of \['transitional', 'own', 'bits'\]",
        ),
        ({"grid": "modified"}, ConfigError, r"grid: expected one of \['centered'\]"),
        (
            {"method": "adabits", "norms": "own"},
            ConfigError,
            r"norms: expected none for the method 'adabits', .* an option of \['bit_mixer'\]",
        ),
        ({"bits": [1, 2]}, BitWidthError, "expected 2 to 16, got 1"),
    ],
)
def test_what_it_has_not_is_refused(
    options: dict[str, Any], error: type[Exception], message: str
) -> None:
    given = {"bits": BITS, "method": "bit_mixer", **options}
    with pytest.raises(error, match=message):
        multiquantize(TwoBlocks(), input_shape=IMAGE, **given)


def test_weights_and_activations_of_a_site_have_the_same_bits() -> None:
    net = made()
    with pytest.raises(BitWidthError, match=r"conv1: expected weights and activations of the same"):
        net.set_active_bits(Assignment(4, {"conv1": (2, 4)}))
    with pytest.raises(BitWidthError, match=r"conv1: expected weights and activations of the same"):
        net.view().set_active_bits(Assignment(4, {"conv1": (2, 4)}))


def test_files_name_the_norms_only_where_they_are_others() -> None:
    default = MultiQuantConfig.create(BITS, method="bit_mixer")
    other = MultiQuantConfig.create(BITS, method="bit_mixer", norms="own")
    assert default.norms == "transitional" and "norms" not in default.to_dict()
    assert other.to_dict()["norms"] == "own"
    for config in (default, other):
        assert MultiQuantConfig.from_dict(config.to_dict()) == config
