"""Learned bit-widths: what they cost, where they end, and the network that is left."""

import copy
import warnings
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend

import brevitas_multiquant.core.cifar_networks  # noqa: F401  (registers the CIFAR networks)
from brevitas_multiquant import (
    Assignment,
    calibrate,
    cost,
    extract_subnet,
    multiquantize,
    save_packed,
)
from brevitas_multiquant.allocation import allocate
from brevitas_multiquant.allocation.bit_search import BitSearch
from brevitas_multiquant.allocation.budget import Budget
from brevitas_multiquant.allocation.ends import uniform_bits
from brevitas_multiquant.allocation.regularisers import L1, Controller
from brevitas_multiquant.errors import (
    BitWidthError,
    BudgetError,
    CalibrationError,
    ConfigError,
    NetworkError,
    UniformBitsWarning,
)
from brevitas_multiquant.methods.settle import settle
from tests.tiny import IMAGE, TinyNet

EIGHT = {"method": "individual", "input_shape": IMAGE}
LABELS = torch.tensor([0, 1, 2, 3])


class Plain(nn.Module):
    """Two blocks in a row, so that every output channel of the first has readers to leave."""

    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.conv1 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.fc = nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        x = torch.relu(self.bn1(self.conv1(x)))
        x = torch.relu(self.bn2(self.conv2(x)))
        return self.fc(x.mean((2, 3)))


def individual(model: nn.Module, images: Tensor, **options: Any) -> Any:
    net = multiquantize(model, [8], **{**EIGHT, **options})
    calibrate(net, [images])
    return net


@pytest.fixture
def net(images: Tensor) -> Any:
    return individual(TinyNet(), images)


def set_bits(search: BitSearch, bits: float | Tensor) -> None:
    with torch.no_grad():
        for value in search.widths.parameters():
            value.copy_(torch.as_tensor(bits).expand_as(value))


def spread(search: BitSearch, seed: int = 0) -> None:
    """Bits anywhere between their candidates."""
    generator = torch.Generator().manual_seed(seed)
    for bits in search.widths.each():
        low, high = bits.candidates[0], bits.candidates[-1]
        if bits.value.requires_grad:
            drawn = torch.rand(bits.value.shape, generator=generator)
            bits.value.data.copy_(low + (high - low) * drawn)


@pytest.mark.parametrize("profile", ["paper", "finn"])
def test_at_whole_bits_it_is_the_network_of_codes(images: Tensor, profile: str) -> None:
    net = individual(TinyNet(), images, profile=profile).eval()
    search = BitSearch(net, Budget(uniform=3))
    for bits in (8, 4):
        set_bits(search, float(bits))
        fractional = net(images)
        twin = multiquantize(
            TinyNet(),
            Assignment(8, dict.fromkeys(net.sites, (bits, bits))),
            **EIGHT | {"profile": profile},
        ).eval()
        twin.load_state_dict(net.state_dict(), strict=False)
        # values in place of codes: sums of 54 products in another order
        assert (fractional - twin(images)).abs().max() < 1e-4
    search.close()
    twin = multiquantize(TinyNet(), [8], **EIGHT | {"profile": profile}).eval()
    twin.load_state_dict(net.state_dict())
    assert torch.equal(net(images), twin(images))


def test_cost_of_whole_bits_is_that_of_the_assignment(net: Any) -> None:
    search = BitSearch(net, Budget(uniform=3))
    spread(search)
    settled = search.settle().allocation
    built = multiquantize(TinyNet(), settled.assignment, **EIGHT)
    assert settled.cost == cost(built)[8].bitops == cost(net)[8].bitops


@pytest.mark.parametrize("of", ["bitops", "bytes"])
def test_cost_is_what_the_terms_say_and_its_gradient_that_of_differences(net: Any, of: str) -> None:
    search = BitSearch(net, Budget(uniform=3, of=of))
    spread(search)
    total = search.widths.cost()[0]
    bits = {width: own.value.item() for width, own in search.widths.shared.items()}
    assert total.item() == pytest.approx(search.problem.cost(bits)[0], rel=1e-6)
    learned = {w: one for w, one in search.widths.shared.items() if one.value.requires_grad}
    kinds = {kind for _, kind in learned}
    assert kinds == {"weight"} | ({"activation"} if of == "bitops" else set())
    gradients = torch.autograd.grad(total, [one.value for one in learned.values()])
    for (width, own), gradient in zip(learned.items(), gradients, strict=True):
        more = search.problem.cost({**bits, width: own.value.item() + 1})[0]
        # linear in each bit-width; sums of numbers up to 1e5 in fp32
        expected = more - search.problem.cost(bits)[0]
        assert gradient.item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("channels", [None, range(9)])
@pytest.mark.parametrize("uniform", [2.5, 3, 5])
@pytest.mark.parametrize("seed", range(3))
def test_never_above_the_budget(images: Tensor, channels: Any, uniform: float, seed: int) -> None:
    net = individual(TinyNet(), images)
    most = cost(net)[8].bitops
    budget = Budget(bitops=most * uniform**2 / 64)
    search = BitSearch(net, budget, channels=channels)
    spread(search, seed)
    settled = search.settle()
    assert settled.allocation.cost <= budget.bitops
    counted = cost(net)[8].bitops
    assert counted <= budget.bitops
    if channels is None:
        assert counted == settled.allocation.cost


def test_it_starts_half_a_bit_above_what_costs_the_budget(net: Any) -> None:
    search = BitSearch(net, Budget(uniform=3))
    assert uniform_bits(search.problem) == pytest.approx(3, abs=1e-6)
    assert all(bits == pytest.approx(3.5, abs=1e-5) for bits in search.bits().values())
    assert search.ratio() == pytest.approx(3.5**2 / 9, rel=1e-5)


def train(search: BitSearch, optimizers: Any, images: Tensor, steps: range) -> None:
    for step in steps:
        for one in optimizers:
            one.zero_grad()
        generator = torch.Generator().manual_seed(step)
        noisy = images + 0.1 * torch.randn(images.shape, generator=generator)
        search(noisy, LABELS)["loss"].backward()
        for one in optimizers:
            one.step()
        search.update_bits(step / 8)


def optimizers_of(net: Any) -> list[Any]:
    return [
        torch.optim.SGD(net.model_parameters(), 0.05, 0.9),
        torch.optim.Adam(net.range_parameters(), 1e-3),
    ]


@pytest.mark.parametrize("channels", [None, range(9)])
def test_updates_of_bits_by_hand(images: Tensor, channels: Any) -> None:
    """Gradient descent whose rate falls to a tenth, as fast for channels as for a whole layer."""
    net = individual(TinyNet(), images).train()
    search = BitSearch(net, Budget(uniform=3), channels=channels)
    spread(search)
    ratio, integral = search.ratio(), search.regulariser.multiplier
    values = search.widths.parameters()
    loss = search(images, LABELS)["loss"]
    task = F.cross_entropy(net(images), LABELS)  # norms normalise by the batch: the same logits
    force = 2 * (ratio - 1)  # k_p = 1 / (0.1 x 5), I = 0
    terms = torch.autograd.grad(search.widths.cost()[0] / search.problem.limits[0], values)
    by_task = torch.autograd.grad(task, values)
    loss.backward()
    rate = search.speed * (1 - 0.9 * 0.5)
    expected = []
    for value, one, other in zip(values, by_task, terms, strict=True):
        low, high = (0, 8) if value.dim() else (2, 8)
        moved = value.detach() - rate * value.numel() * (one + force * other)
        expected.append(moved.clamp(low, high))
    search.update_bits(done=0.5)
    for value, one in zip(values, expected, strict=True):
        # the same gradients, added up in fp32 in another order
        assert torch.allclose(value, one, atol=1e-4) and value.grad is None
    assert integral == 0 and search.regulariser.multiplier == pytest.approx(
        0.1 * (ratio - 1), rel=1e-5
    )


def test_bits_are_no_parameters_of_the_model(net: Any) -> None:
    before = [id(parameter) for parameter in net.model_parameters()]
    ranges = [id(parameter) for parameter in net.range_parameters()]
    search = BitSearch(net, Budget(uniform=3))
    assert [id(parameter) for parameter in net.model_parameters()] == before
    assert [id(parameter) for parameter in net.range_parameters()] == ranges
    everything = {id(parameter) for parameter in net.parameters()}
    bits = {id(value) for value in search.widths.parameters()}
    spread(search)
    assert everything == {*before, *ranges, *bits} and len(bits) == 2 * len(net.sites)
    search.settle()
    assert {id(parameter) for parameter in net.parameters()} == {*before, *ranges}


@pytest.mark.parametrize("channels", [None, (0, 1, 2, 3, 4, 5, 6, 7, 8)])
@pytest.mark.parametrize("profile", ["paper", "finn"])
def test_what_is_left_is_the_network_of_its_assignment(
    images: Tensor, channels: Any, profile: str
) -> None:
    """To the bit, with the optimizers that it had."""
    net = individual(TinyNet(), images, profile=profile).train()
    search, optimizers = BitSearch(net, Budget(uniform=3), channels=channels), optimizers_of(net)
    spread(search)
    train(search, optimizers, images, range(3))
    kept = {name: id(parameter) for name, parameter in net.named_parameters()}
    settled = search.settle()
    assert {name: id(parameter) for name, parameter in net.named_parameters()} == {
        name: one for name, one in kept.items() if "learned_bits" not in name
    }
    train(search, optimizers, images, range(3))  # goes on
    built = multiquantize(TinyNet(), settled.allocation.assignment, **EIGHT | {"profile": profile})
    if channels is None:
        assert net.layout == built.layout
    else:
        settle(built, settled.allocation.assignment, settled.channels)
    assert built.config == net.config
    built.load_state_dict(net.state_dict())
    for mode in (True, False):
        assert torch.equal(built.train(mode)(images), net.train(mode)(images))
    with torch.no_grad():
        assert torch.equal(extract_subnet(net, 8)(images), net.eval()(images))


def test_channels_of_no_bits_give_nothing_and_learn_nothing(images: Tensor) -> None:
    net = individual(Plain(), images).train()
    search = BitSearch(net, Budget(uniform=3), channels=range(9))
    values = search.widths.of_layer["conv1"].value
    with torch.no_grad():
        values.copy_(torch.tensor([0.0, 3.0, 0.0, 5.0, 2.0, 1.0]).view(-1, 1, 1, 1))
        for name, bits in search.widths.of_layer.items():
            bits.value.add_(0 if name == "conv1" else -0.5)
    settled = search.settle()
    pruned = [index for index, bits in enumerate(settled.channels["conv1"]) if not bits]
    assert pruned  # whatever was left of the budget went elsewhere
    layer = net.branches[0].get_submodule("conv1")
    assert not layer.quant_weight()[pruned].any()
    F.cross_entropy(net(images), LABELS).backward()
    assert not layer.weight.grad[pruned].any() and layer.weight.grad.any()


def digits() -> tuple[Tensor, Tensor]:
    images, labels = load_digits(return_X_y=True)
    scaled = torch.tensor(images, dtype=torch.float32).view(-1, 1, 8, 8) / 8 - 1
    return scaled.expand(-1, 3, -1, -1)[:640], torch.tensor(labels)[:640] % 5


@pytest.mark.parametrize("channels", [None, range(9)])
def test_a_search_on_digits_holds_its_budget(channels: Any) -> None:
    torch.manual_seed(0)
    images, labels = digits()
    net = individual(Plain(8), images[:64]).train()
    search = BitSearch(net, Budget(uniform=3), channels=channels)
    optimizers, steps, ratios, losses = optimizers_of(net), 100, [], []
    for step in range(steps):
        batch = slice(64 * (step % 10), 64 * (step % 10) + 64)
        for one in optimizers:
            one.zero_grad()
        parts = search(images[batch], labels[batch])
        parts["loss"].backward()
        for one in optimizers:
            one.step()
        search.update_bits(step / steps)
        ratios.append(search.ratio())
        losses.append(parts["ce"][8].item())
    assert ratios[0] > 1.2 and all(abs(one - 1) < 0.02 for one in ratios[-10:])
    assert losses[-1] < 0.5 * losses[0]
    learned = [value for name, value in search.bits().items()]
    assert max(learned) - min(learned) > 0.05  # they trade
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UniformBitsWarning)
        settled = search.settle()
    assert settled.ratio == ratios[-1]
    assert 0.9 < settled.allocation.cost / settled.allocation.budget <= 1


def test_the_published_term_says_when_it_ends_uniform(images: Tensor) -> None:
    net = individual(TinyNet(), images).train()
    search = BitSearch(net, Budget(uniform=3), regulariser=L1(10.0), rate=1e-3)
    for bits in search.widths.each():
        bits.value.data.fill_(3.0)
    with pytest.warns(UniformBitsWarning, match=r"ended at 3 bits everywhere.*Controller"):
        search.settle()


def test_a_short_search_says_so_too(images: Tensor) -> None:
    """One update moves no bits from where the budget put all of them."""
    with pytest.warns(UniformBitsWarning, match="ended at 4 bits everywhere"):
        found = allocate(
            TinyNet(),
            Budget(uniform=4),
            strategy="fracbits",
            data=[(images, torch.arange(len(images)))],
            candidates=(2, 4, 8),
            input_shape=IMAGE,
            options={"steps": 1},
        )
    assert {*found.assignment.values()} == {(4, 4)}


def test_a_search_that_was_stopped_goes_on_to_the_bit(images: Tensor) -> None:
    def fresh() -> tuple[Any, BitSearch, list[Any]]:
        torch.manual_seed(3)
        net = individual(TinyNet(), images).train()
        return net, BitSearch(net, Budget(uniform=3), channels=range(9)), optimizers_of(net)

    _, search, optimizers = fresh()
    train(search, optimizers, images, range(8))
    half, part, before = fresh()
    train(part, before, images, range(4))
    again, rest, after = fresh()
    again.load_state_dict(half.state_dict())
    for one, other in zip(after, before, strict=True):
        one.load_state_dict(copy.deepcopy(other.state_dict()))
    train(rest, after, images, range(4, 8))
    whole, other = search.net.state_dict(), again.state_dict()
    assert whole.keys() == other.keys()
    assert all(torch.equal(whole[name], other[name]) for name in whole)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UniformBitsWarning)
        assert rest.settle() == search.settle()


def test_pins_and_groups(net: Any) -> None:
    search = BitSearch(net, Budget(uniform=4), pins={"conv2": (8, None)})
    assert search.bits()["conv2 weight"] == 8 and search.bits()["conv2 activation"] != 8
    assert len(search.widths.parameters()) == 2 * len(net.sites) - 1
    spread(search)
    found = search.settle().allocation
    assert found.assignment["conv2"].weight == 8 and found.cost <= found.budget


@pytest.mark.parametrize("channels", [None, range(9)])
def test_groups(images: Tensor, channels: Any) -> None:
    """With channels those of activations; weights have bits of their own anyway."""
    net = individual(TinyNet(), images)
    budget = Budget(ratio=0.9, uniform=4)
    search = BitSearch(net, budget, groups=[["conv1", "conv2"]], channels=channels)
    kinds = ["weight", "activation"] if channels is None else ["activation"]
    assert [kind for _, kind in search.widths.shared] == kinds
    spread(search)
    found = search.settle().allocation
    first, second = found.assignment.values()
    assert found.cost <= found.budget and len(found.assignment) == 2
    assert all(getattr(first, kind) == getattr(second, kind) for kind in kinds)


def test_nothing_is_exported_or_packed_midway(images: Tensor, tmp_path: Any) -> None:
    net = individual(timm.create_model("cifar_resnet8"), images)
    search = BitSearch(net, Budget(uniform=3))
    spread(search)
    with pytest.raises(BitWidthError, match=r"expected whole bits, got a search that has not"):
        extract_subnet(net, 8)
    with pytest.raises(BitWidthError, match=r"expected whole bits, got a search that has not"):
        save_packed(net, tmp_path / "net.safetensors")
    search.settle()
    with torch.no_grad():
        assert torch.equal(extract_subnet(net, 8)(images), net.eval()(images))


def test_refused(net: Any, make_net: Any, images: Tensor) -> None:
    with pytest.raises(ConfigError, match=r"expected a network of one bit-width.*'multiquant'"):
        BitSearch(make_net(), Budget(uniform=3))
    with pytest.raises(NetworkError, match="BitSearch"):
        BitSearch(nn.DataParallel(net), Budget(uniform=3))  # type: ignore[arg-type]
    with pytest.raises(BudgetError, match=r"expected .* to .* bitops.*got 10"):
        BitSearch(net, Budget(bitops=10))
    with pytest.raises(BudgetError, match=r"every layer can have them, without a search"):
        BitSearch(net, Budget(bitops=1e12))
    with pytest.raises(BudgetError, match=r"expected one of \['bitops', 'bytes'\] for bits of si"):
        BitSearch(
            net,
            Budget(custom=30.0, cost=lambda layer, weight, read: weight * read),
            channels=range(9),
        )
    for channels in ((), (0,), (-1, 3), (2.5, 3), (2, 40), 3):
        with pytest.raises(BitWidthError, match="channels: expected whole bits from 0 to 16"):
            BitSearch(net, Budget(uniform=3), channels=channels)  # type: ignore[arg-type]
    for name, value in (("start", float("nan")), ("rate", -1.0), ("rate", 0.0)):
        with pytest.raises(ConfigError, match=f"{name}: expected a positive number, got {value}"):
            BitSearch(net, Budget(uniform=3), **{name: value})  # type: ignore[arg-type]
    with pytest.raises(BudgetError, match=r"expected a Budget, .*got 3"):
        BitSearch(net, 3)  # type: ignore[arg-type]
    search = BitSearch(net, Budget(uniform=3), regulariser=Controller(rate=0.05))
    assert search.rate == 0.05
    for done in (-0.1, 3.0):  # beyond 1.1 it would walk away from the budget
        with pytest.raises(ConfigError, match="done: expected a share from 0 to 1"):
            search.update_bits(done)
    spread(search)
    with pytest.raises(ConfigError, match=r"expected a network without a search"):
        BitSearch(net, Budget(uniform=3))
    search.settle()
    search.update_bits(1.25)  # of a loop that goes on
    with pytest.raises(ConfigError, match=r"expected a search that is open"):
        search.settle()
    with pytest.raises(ConfigError, match=r"with an assignment"):
        BitSearch(net, Budget(uniform=3))


def test_one_compiled_graph_whatever_the_bits(images: Tensor) -> None:
    torch._dynamo.reset()
    net = individual(TinyNet(), images).train()
    search = BitSearch(net, Budget(uniform=3))
    counter = CompileCounterWithBackend("aot_eager")
    net.compile(backend=counter, dynamic=False)
    for bits in (2.0, 2.7, 4.0, 5.5, 8.0):
        set_bits(search, bits)
        search(images, LABELS)["loss"].backward()
    assert counter.frame_count == 1
    torch._dynamo.reset()


def test_a_budget_of_luts(images: Tensor) -> None:
    """FINN's rules, from tables between whole bits; whole ones are what they count themselves."""
    net = individual(TinyNet(), images, profile="finn").train()
    budget = Budget(uniform=4, of="luts", target_fps=1000)
    search = BitSearch(net, budget, candidates=(2, 3, 4, 5, 6))
    assert search.problem.unit == "luts" and search.ratio() > 1
    spread(search)
    train(search, optimizers_of(net), images, range(2))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UniformBitsWarning)
        found = search.settle().allocation
    assert found.cost <= found.budget and found.layers
    with pytest.raises(BudgetError, match=r"for bits of single channels, got luts"):
        BitSearch(individual(TinyNet(), images, profile="finn"), budget, channels=range(9))


def test_as_a_strategy() -> None:
    """A short search from float weights, for its bits alone; the model is left as it is."""
    images, labels = digits()
    model = Plain(8).eval()
    before = copy.deepcopy(model.state_dict())
    found = allocate(
        model,
        Budget(ratio=0.2),
        strategy="fracbits",
        data=[(images[:64], labels[:64]), (images[64:128], labels[64:128])],
        samples=128,
        input_shape=IMAGE,
    )
    assert found.cost <= found.budget and found.strategy == "fracbits"
    assert len({bits for pair in found.assignment.values() for bits in pair}) > 1
    after = model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    with pytest.raises(CalibrationError, match=r"'fracbits'.*labels"):
        allocate(model, Budget(ratio=0.2), strategy="fracbits", data=[images], input_shape=IMAGE)
