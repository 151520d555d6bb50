"""Bits of every layer within a budget: each strategy against a slow oracle, and what is shared."""

from collections.abc import Iterator
from itertools import product
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from brevitas_multiquant import Assignment, calibrate, cost, multiquantize
from brevitas_multiquant.allocation import (
    STRATEGIES,
    Allocation,
    Budget,
    CostTable,
    allocate,
    knapsack,
)
from brevitas_multiquant.allocation.problem import Problem, problem_of
from brevitas_multiquant.allocation.sites import ACTIVATION, WEIGHT, Sites, sites_of
from brevitas_multiquant.allocation.solve import solve
from brevitas_multiquant.allocation.strategies import fisher, mixquant, sqnr, supernet
from brevitas_multiquant.allocation.strategies.simulate import Simulation, quantized, weights
from brevitas_multiquant.cost.terms import Term
from brevitas_multiquant.errors import ConfigError
from brevitas_multiquant.training.norm_statistics import assigned_norms

SHAPE = (1, 3, 8, 8)


class Residual(nn.Module):
    """A stem, a block whose first tensor two layers read, one more layer, a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.left = nn.Conv2d(6, 8, 3, padding=1)
        self.bn = nn.BatchNorm2d(8)
        self.right = nn.Conv2d(6, 8, 1)
        self.last = nn.Conv2d(8, 8, 3, groups=2)
        self.fc = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        x = (self.bn(self.left(x)) + self.right(x)).relu()
        return self.fc(self.last(x).relu().mean((2, 3)))


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    return Residual().eval()


@pytest.fixture(scope="module")
def batch() -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    return torch.randn(8, *SHAPE[1:]), torch.randint(5, (8,))


@pytest.fixture(scope="module")
def sites(model: nn.Module) -> Sites:
    net = multiquantize(model, [2], input_shape=SHAPE)
    return sites_of(net, SHAPE, 2, weight_bits=None, is_float=True)


MACS = {"left": 6 * 8 * 9 * 64, "right": 6 * 8 * 64, "last": 4 * 8 * 9 * 36}
STEM, HEAD = 3 * 6 * 9 * 64, 40
SITE = {"left": "left", "right": "left", "last": "last"}


def by_hand(assignment: Assignment) -> int:
    pairs = {layer: assignment[site] for layer, site in SITE.items()}
    return sum(macs * pairs[layer].weight * pairs[layer].activation for layer, macs in MACS.items())


@pytest.mark.parametrize("strategy", [name for name, row in STRATEGIES.items() if not row.run_time])
@pytest.mark.parametrize("bits", [3, 4])
@pytest.mark.filterwarnings("ignore::brevitas_multiquant.errors.UniformBitsWarning")
def test_within_the_budget_and_counted_right(
    model: nn.Module, batch: Any, strategy: str, bits: int
) -> None:
    budget = Budget(uniform=bits)
    trains = "steps" in STRATEGIES[strategy].options
    options: Any = {"options": {"steps": 20}} if trains else {}
    found = allocate(model, budget, strategy=strategy, data=[batch], input_shape=SHAPE, **options)
    assert found.budget == by_hand(Assignment(bits, dict.fromkeys(("left", "last"), (bits, bits))))
    assert found.cost == by_hand(found.assignment) <= found.budget
    candidates = STRATEGIES[strategy].candidates or range(2, 9)
    most = max(candidate for candidate in candidates if candidate <= bits)
    assert found.uniform is not None and found.uniform.bits == most
    assert found.uniform.cost == by_hand(
        Assignment(most, dict.fromkeys(("left", "last"), (most, most)))
    )
    assert set(found.assignment) == {"left", "last"} and found.assignment.bits == most
    shares = {row.layer: row for row in found.layers}
    assert sum(row.share for row in found.layers) == pytest.approx(1)  # a sum of floats
    assert (
        shares["right"].cost == MACS["right"] * shares["right"].weight * shares["right"].activation
    )
    if not trains:  # for a single budget
        costs, losses, _ = zip(*found.curve, strict=True)
        assert sorted(costs) == list(costs) and sorted(losses, reverse=True) == list(losses)
        assert all(point.cost == by_hand(point.assignment) for point in found.curve)


def test_conventions_and_bytes_are_those_of_the_cost_table(model: nn.Module) -> None:
    """Of the network of one branch at 2 bits, whose weights have 2 bits too."""
    net = multiquantize(model, [2], input_shape=SHAPE)
    for unit, options in (("bitops", {}), ("bitops", {"convention": "fracbits"}), ("bytes", {})):
        convention = options.get("convention", "quantized")
        expected = getattr(cost(net, SHAPE, convention)[2], unit)
        budget = Budget(uniform=2, of=unit, **options)  # type: ignore[arg-type]
        found = allocate(model, budget, strategy="uniform", input_shape=SHAPE)
        assert found.cost == found.budget == expected
    assert (
        expected
        < allocate(model, Budget(uniform=3, of="bytes"), strategy="uniform", input_shape=SHAPE).cost
    )


def test_pins_groups_and_candidates(model: nn.Module, batch: Any) -> None:
    def found(**options: Any) -> Allocation:
        return allocate(model, Budget(uniform=4), data=[batch], input_shape=SHAPE, **options)

    pinned = found(pins={"right": (8, None), "la*": 2}).assignment  # a layer means its site
    assert pinned["left"].weight == 8 and pinned["last"] == (2, 2)
    grouped = found(groups=[["left", "last"]]).assignment
    assert grouped["left"] == grouped["last"]
    few = found(candidates={"weight": [2, 8], "activation": [4]}).assignment
    assert {pair.activation for pair in few.values()} == {4}
    assert {pair.weight for pair in few.values()} <= {2, 8}


def test_a_name_counts_before_a_glob(model: nn.Module) -> None:
    for pins in ({"last": 3, "*": 2}, {"*": 2, "last": 3}):
        budget = Budget(uniform=4)
        found = allocate(model, budget, strategy="uniform", pins=pins, input_shape=SHAPE)
        assert dict(found.assignment) == {"left": (2, 2), "last": (3, 3)}


def test_what_uniform_bits_cost_has_pins_but_whatever_candidates(model: nn.Module) -> None:
    def limit(**options: Any) -> float:
        options = {"strategy": "uniform", "input_shape": SHAPE, **options}
        return allocate(model, Budget(uniform=3), **options).budget

    assert limit(candidates=[2]) == limit(candidates={"weight": [2], "activation": [2, 5]})
    assert limit(candidates=[2]) == by_hand(Assignment(3, {"left": (3, 3), "last": (3, 3)}))
    pinned = Assignment(3, {"left": (3, 2), "last": (3, 3)})
    assert limit(pins={"left": (None, 2)}) == by_hand(pinned)


@pytest.mark.parametrize("given", ["table", "function", "file"])
def test_costs_that_somebody_measured(
    model: nn.Module, batch: Any, given: str, tmp_path: Any
) -> None:
    """In place of BitOPs: here a layer takes longer by its weights alone."""
    times = {"left": 5.0, "right": 1.0, "last": 2.0}
    entries = {
        (layer, weight, read): time * weight
        for layer, time in times.items()
        for weight, read in product((2, 4, 8), repeat=2)
    }
    file = tmp_path / "costs.csv"
    rows = [",".join(map(str, (*key, value))) for key, value in entries.items()]
    file.write_text("\n".join(["layer,weight_bits,activation_bits,cost", *rows]))
    costs: Any = {
        "table": CostTable(entries),
        "function": lambda layer, weight, read: times[layer] * weight,
        "file": CostTable.from_csv(file),
    }[given]
    budget = Budget(custom=30.0, cost=costs)
    found = allocate(model, budget, data=[batch], candidates=(2, 4, 8), input_shape=SHAPE)
    left, last = found.assignment["left"], found.assignment["last"]
    assert found.cost == 6 * left.weight + 2 * last.weight <= 30
    assert left.activation == last.activation == 8  # they cost nothing


def test_the_simulation_is_the_float_network_but_for_one_width(
    model: nn.Module, sites: Sites, batch: Any
) -> None:
    images, _ = batch
    run = Simulation(sites)
    seen: list[Any] = []
    hook = model.last.register_forward_hook(lambda _, args, out: seen.append((args[0], out)))
    with torch.no_grad():
        assert torch.equal(run.reference(images), model(images))
        (read, _) = seen[0]
        hook.remove()
        before = [run.changed([("last", kind)], 3, images) for kind in (WEIGHT, ACTIVATION)]
        layer = run.layers["last"][0]
        assert torch.equal(run.reference(images), model(images)), "nothing stays quantized"
        stored = model.last.weight.data.clone()
        model.last.weight.data = weights(layer, 3)
        assert torch.equal(before[0], model(images))
        model.last.weight.data = stored
        less = run.activations(("last", ACTIVATION), 3, read)
        hook = model.last.register_forward_pre_hook(lambda *_: (less,))
        assert torch.equal(before[1], model(images))
        hook.remove()
    assert len(less.unique()) <= 8 and len(weights(layer, 3).unique()) <= 8


def test_noise_against_its_formula(model: nn.Module, sites: Sites, batch: Any) -> None:
    problem = problem_of(sites, Budget(uniform=4), (2, 4), {}, ())
    images, _ = batch
    found = sqnr.noise(problem, [images[:5], images[5:]], 8)
    run = Simulation(sites)
    with torch.no_grad():
        run.activations(("left", ACTIVATION), 2, model.stem(images[:5]).relu())  # the first batch's
        logits = model(images).double()
        changed = run.changed([("left", ACTIVATION)], 2, images).double()
    expected = float((changed - logits).square().sum() / logits.square().sum())
    # batches of other sizes add up in another order
    assert found["left", ACTIVATION][2] == pytest.approx(expected, rel=1e-5)
    assert found["left", ACTIVATION][4] < found["left", ACTIVATION][2]


def test_fisher_against_its_formula(model: nn.Module, sites: Sites, batch: Any) -> None:
    """Of the last layer, by autograd image by image."""
    problem = problem_of(sites, Budget(uniform=4), (2, 4), {}, ())
    found = fisher.sensitivity(problem, [batch], 8)
    given: list[Any] = []
    with torch.no_grad():
        less = weights(Simulation(sites).layers["last"][0], 2)
    hook = model.last.register_forward_hook(lambda _, args, out: given.append((args[0], out)))
    expected = 0.0
    for image, label in zip(*batch, strict=True):
        loss = nn.functional.cross_entropy(model(image[None]), label[None])
        read, out = given[-1]
        (grad,) = torch.autograd.grad(loss, out)
        change = nn.functional.conv2d(read, less, model.last.bias, groups=2) - out
        expected += float((grad * change).detach().square().sum()) / 8
    hook.remove()
    # one batch of eight and eight of one differ in the last bits of fp32
    assert found["last", WEIGHT][2] == pytest.approx(expected, rel=1e-4)


def test_mixquant_is_one_multiple_of_the_least_error(sites: Sites) -> None:
    problem = problem_of(sites, Budget(uniform=4), range(2, 9), {}, ())
    errors = mixquant.round_trip_errors(problem)
    with torch.no_grad():
        layers = Simulation(sites).layers["left"]
        own = sum(float((weights(one, 5) - one.weight).double().square().sum()) for one in layers)
    assert errors["left", WEIGHT][5] == pytest.approx(own, rel=1e-12)  # the same sum in fp64
    found = mixquant.mixquant(problem)
    assert {found.bits[width] for width in found.bits if width[1] == ACTIVATION} == {4}
    for point in found.curve:
        multiple = max(errors[w][point.bits[w]] / errors[w][8] for w in errors)
        for width, of in errors.items():
            fewer = point.bits[width] - 1
            assert fewer not in of or of[fewer] > multiple * of[8]


@pytest.mark.parametrize("seed", range(6))
def test_knapsacks_against_all_choices(seed: int) -> None:
    torch.manual_seed(seed)
    groups = [
        [(float(cost), float(loss)) for cost, loss in (torch.rand(4, 2) * 10).tolist()]
        for _ in range(4)
    ]
    cheapest = sum(min(cost for cost, _ in group) for group in groups)
    budget = cheapest + seed * 2.0

    def value(chosen: Any) -> tuple[float, float]:
        pairs = [group[one] for group, one in zip(groups, chosen, strict=True)]
        return sum(cost for cost, _ in pairs), sum(loss for _, loss in pairs)

    every = [value(one) for one in product(range(4), repeat=4)]
    best = min(loss for cost, loss in every if cost <= budget + 1e-9)
    cost, loss = value(knapsack.exactly(groups, budget))
    assert cost <= budget + 1e-9 and loss == pytest.approx(best, abs=1e-9)  # a solver's tolerance
    near_cost, near = value(knapsack.by_hull(groups, budget))
    largest = max(max(loss for _, loss in g) - min(loss for _, loss in g) for g in groups)
    assert near_cost <= budget + 1e-9 and best - 1e-9 <= near <= best + largest


@pytest.mark.parametrize("uniform", [3, 5])
def test_exact_is_the_best_of_all_choices(sites: Sites, uniform: int) -> None:
    torch.manual_seed(0)
    problem = problem_of(sites, Budget(uniform=uniform), range(2, 9), {}, ())
    losses = {
        width: {bits: float(torch.rand(())) * 4.0**-bits for bits in of}
        for width, of in problem.candidates.items()
    }
    falling = {w: {b: max(of[c] for c in of if c >= b) for b in of} for w, of in losses.items()}

    def loss(bits: Any) -> float:
        return sum(falling[w][b] for w, b in bits.items())

    near, best = (loss(solve(problem, losses, exact).bits) for exact in (False, True))
    every = (
        dict(zip(problem.candidates, bits, strict=True))
        for bits in product(range(2, 9), repeat=len(problem.candidates))
    )
    least = min(loss(bits) for bits in every if problem.fits(bits))
    assert best == pytest.approx(least, rel=1e-9)  # a solver's tolerance
    assert near >= least * (1 - 1e-9)


def test_more_bits_where_more_is_lost(model: nn.Module, batch: Any) -> None:
    """A layer that is made a hundred times as sensitive as it was."""

    def bits_of_last(scale: float) -> int:
        torch.manual_seed(0)
        other = Residual().eval()
        other.right.weight.data *= 0
        other.left.weight.data *= scale
        found = allocate(other, Budget(uniform=3), data=[batch], input_shape=SHAPE)
        return found.assignment["left"].weight

    assert bits_of_last(0.01) <= bits_of_last(100)


def networks() -> Iterator[tuple[Any, ...]]:
    yield "sqnr", True
    yield "uniform", False


@pytest.mark.parametrize(("strategy", "mixes"), networks())
def test_activations_of_a_network_with_branches(
    model: nn.Module, batch: Any, strategy: str, mixes: bool
) -> None:
    net = multiquantize(model, [2, 4, 8], input_shape=SHAPE)
    calibrate(net, [batch])
    found = allocate(net, Budget(ratio=0.7), strategy=strategy, data=[batch])
    assert found.assignment.bits == 8
    assert {pair.weight for pair in found.assignment.values()} == {2}
    expected = sum(
        macs * 4 * 2 * found.assignment[SITE[layer]].activation for layer, macs in MACS.items()
    )
    whole = sum(macs * 4 * 2 * 8 for macs in MACS.values())
    assert found.cost == expected <= found.budget == 0.7 * whole
    assert found.assignment.is_uniform is False
    assert found.uniform is not None and found.uniform.bits == 4
    with torch.no_grad(), net.at_bits(found.assignment):
        assert net(batch[0]).shape == (8, 5)
    assert (len({p.activation for p in found.assignment.values()}) > 1) is mixes


def test_a_table_and_a_plot(model: nn.Module, batch: Any, tmp_path: Any) -> None:
    found = allocate(model, Budget(bitops=3e6), data=[batch], input_shape=SHAPE)
    lines = str(found).splitlines()
    assert lines[0].startswith("sqnr: ") and "of 0.003 GBitOPs" in lines[0]
    assert lines[2].split() == ["layer", "weight", "activation", "GBitOPs", "share"]
    assert [line.split()[0] for line in lines[3:]] == ["left", "right", "last"]
    other = Budget(bitops=2e7, convention="fracbits")
    others = str(allocate(model, other, data=[batch], input_shape=SHAPE)).splitlines()
    assert "of 0.02 GBitOPs (fracbits); uniform" in others[0] and "GBitOPs (fracbits)" in others[2]
    small = str(allocate(model, Budget(bytes=3e3), data=[batch], input_shape=SHAPE)).splitlines()
    assert "of 3 kB; uniform" in small[0] and small[2].split()[3] == "kB"
    figure = found.plot(tmp_path / "bits.png")
    assert len(figure.axes) == 2 and (tmp_path / "bits.png").stat().st_size > 1000
    heights = [bar.get_height() for bar in figure.axes[0].patches]
    pairs = found.assignment.values()
    assert heights == [*(p.weight for p in pairs), *(p.activation for p in pairs)]


def test_zero_bits_are_no_channel() -> None:
    assert not quantized(torch.randn(3), 0, torch.tensor(-1.0), torch.tensor(1.0)).any()


def test_a_problem_is_of_the_first_of_each_group(sites: Sites) -> None:
    problem: Problem = problem_of(sites, Budget(uniform=4), (2, 4), {}, [["l*"]])
    assert set(problem.candidates) == {("left", WEIGHT), ("left", ACTIVATION)}
    assert problem.members(("left", WEIGHT)) == (("left", WEIGHT), ("last", WEIGHT))
    chosen = {("left", WEIGHT): 2, ("left", ACTIVATION): 4}
    assert problem.cost(chosen) == (sum(MACS.values()) * 8,)


def test_weights_and_activations_of_a_network_with_one_body(model: nn.Module, batch: Any) -> None:
    net = multiquantize(model, [2, 4, 8], method="adabits", input_shape=SHAPE)
    calibrate(net, [batch])
    found = allocate(net.eval(), Budget(uniform=4), data=[batch])
    assert found.cost == by_hand(found.assignment) <= found.budget
    assert {bits for pair in found.assignment.values() for bits in pair} <= {2, 4, 8}
    with torch.no_grad(), net.at_bits(found.assignment):
        assert net(batch[0]).shape == (8, 5)


@pytest.mark.parametrize("method", ["multiquant", "adabits", "bit_mixer"])
def test_steps_down_that_are_measured(model: nn.Module, batch: Any, method: str) -> None:
    """Every point of the curve has the loss of the network that it is, with norms of its own."""
    net = multiquantize(model, [2, 4, 8], method=method, input_shape=SHAPE)
    calibrate(net, [batch])
    before = {name: value.clone() for name, value in net.state_dict().items()}
    found = allocate(net.eval(), Budget(ratio=0.5), strategy="supernet", data=[batch])
    assert found.cost <= found.budget and found.curve
    for point in found.curve:
        view = assigned_norms(net, point.assignment, [batch], batches=1).eval()
        with torch.no_grad():
            loss = nn.functional.cross_entropy(view(batch[0]), batch[1])
        assert point.loss == pytest.approx(float(loss), rel=1e-5)  # fp32 sums and means
    if method == "bit_mixer":  # its weights have the bits of their input
        assert all(pair.weight == pair.activation for pair in found.assignment.values())
    after = net.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


def test_a_step_down_may_save_dsps_alone(monkeypatch: pytest.MonkeyPatch, batch: Any) -> None:
    """The first resource stays the same; the other one has to fall."""
    dense = Term(("dense",), lambda bits: (5.0, float(bits)))
    small = Term(("small",), lambda bits: (float(bits), 0.0))
    widths: Any = {"dense": (2, 3, 4), "small": (2, 3)}
    sites: Any = SimpleNamespace(net=nn.Linear(1, 1))
    same = {width: width for width in widths}
    problem = Problem(sites, "luts", widths, same, (dense, small), limits=(8.0, 3.0))
    monkeypatch.setattr(supernet, "_loss", lambda _, chosen, __: -float(sum(chosen.values())))
    found = supernet.supernet(problem, [batch], 8)
    assert found.bits == {"dense": 3, "small": 3}


def test_a_float_model_is_no_supernet(model: nn.Module, batch: Any) -> None:
    with pytest.raises(ConfigError, match="'supernet', got a float model"):
        allocate(model, Budget(uniform=4), strategy="supernet", data=[batch], input_shape=SHAPE)
