"""An accuracy that is kept: measured on the original model by hand, and by every strategy."""

from itertools import product
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from brevitas_multiquant import calibrate, multiquantize
from brevitas_multiquant.allocation import Budget, allocate
from brevitas_multiquant.allocation.accuracy import accuracy_floor
from brevitas_multiquant.allocation.problem import Problem, problem_of
from brevitas_multiquant.allocation.sites import ACTIVATION, WEIGHT, Sites, sites_of
from brevitas_multiquant.allocation.strategies import kl, metrics
from brevitas_multiquant.allocation.strategies.sensitivity import sensitivity
from brevitas_multiquant.allocation.strategies.simulate import Simulation, best_range, quantized
from brevitas_multiquant.training.norm_statistics import assigned_norms
from tests.allocation.test_allocate import SHAPE, Residual

IMAGES = torch.randn(16, *SHAPE[1:], generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    return Residual().eval()


@pytest.fixture(scope="module")
def sites(model: nn.Module) -> Sites:
    net = multiquantize(model, [2], input_shape=SHAPE)
    return sites_of(net, SHAPE, 2, weight_bits=None, is_float=True)


@pytest.fixture(scope="module")
def problem(sites: Sites) -> Problem:
    return problem_of(sites, Budget(ratio=1.0), (2, 3, 4, 6, 8), {}, ())


def near_to(model: nn.Module) -> Any:
    """Minus the distance to the float logits: as smooth as an accuracy is not."""
    with torch.no_grad():
        logits = model(IMAGES)
        spread = (logits - logits.mean(0)).norm()
    return lambda net: -float((net(IMAGES) - logits).norm() / spread)


def by_hand(model: nn.Module, chosen: Any) -> Tensor:
    """Logits with every weight and every input of the three layers rounded."""
    twin: Any = Residual().eval()
    twin.load_state_dict(model.state_dict())
    own: Any = model
    float_read: dict[str, Tensor] = {}
    hooks = [
        getattr(own, name).register_forward_pre_hook(
            lambda _, args, name=name: float_read.setdefault(name, args[0]) is None or None
        )
        for name in ("left", "right", "last")
    ]
    own(IMAGES)
    for hook in hooks:
        hook.remove()
    for name, site in {"left": "left", "right": "left", "last": "last"}.items():
        layer, bits = getattr(twin, name), chosen[site, WEIGHT]
        layer.weight.data = quantized(
            layer.weight, bits, *best_range(layer.weight, bits, symmetric=True)
        )
        read = chosen[site, ACTIVATION]
        span = best_range(float_read[site], read)
        layer.register_forward_pre_hook(
            lambda _, args, read=read, span=span: (quantized(args[0], read, *span),)
        )
    return twin(IMAGES)


@torch.no_grad()
def test_all_widths_are_rounded_together(model: nn.Module, problem: Problem) -> None:
    evaluate = near_to(model)
    floor = accuracy_floor(problem, 0.5, evaluate, [IMAGES], 16)
    assert floor.of(None) == 0 and floor.least == -0.5
    widths = list(problem.candidates)
    for bits in ((2, 3, 4, 8), (8, 2, 3, 4), (2, 2, 2, 2)):
        chosen = dict(zip(widths, bits, strict=True))
        assert floor.of(chosen) == evaluate(lambda _, c=chosen: by_hand(model, c))


@pytest.mark.parametrize("strategy", ["uniform", "sqnr", "mixquant", "fisher", "kl"])
def test_the_cheapest_of_the_curve_that_holds(model: nn.Module, strategy: str) -> None:
    evaluate, drop = near_to(model), 0.1
    labels = torch.arange(16) % 5
    options: Any = {"strategy": strategy, "data": [(IMAGES, labels)], "input_shape": SHAPE}
    found = allocate(model, accuracy_drop=drop, evaluate=evaluate, **options)
    assert found.accuracy is not None and found.accuracy.reference == 0
    assert -drop == found.accuracy.floor <= found.accuracy.found
    assert found.cost == found.budget and "accuracy" in found.headline()
    cheaper = [point for point in found.curve if point.cost < found.cost]
    assert cheaper, "the curve goes on below"
    next_one = {
        (site, kind): getattr(pair, kind)
        for site, pair in cheaper[-1].assignment.items()
        for kind in (WEIGHT, ACTIVATION)
    }
    with torch.no_grad():
        assert evaluate(lambda _: by_hand(model, next_one)) < -drop


def test_within_a_budget_too(model: nn.Module) -> None:
    evaluate = near_to(model)
    options: Any = {"data": [IMAGES], "input_shape": SHAPE}
    budget = Budget(uniform=7, of="bytes")
    found = allocate(model, budget, accuracy_drop=0.5, evaluate=evaluate, **options)
    assert found.unit == "bytes" and found.accuracy is not None
    assert all(pair.activation == 8 for pair in found.assignment.values())  # they cost nothing
    assert found.cost < allocate(model, budget, **options).cost


def test_labels_in_place_of_a_function(model: nn.Module) -> None:
    with torch.no_grad():
        labels = model(IMAGES).argmax(1)
    found = allocate(model, accuracy_drop=0.25, data=[(IMAGES, labels)], input_shape=SHAPE)
    assert found.accuracy is not None and found.accuracy.reference == 1
    chosen = {
        (site, kind): getattr(pair, kind)
        for site, pair in found.assignment.items()
        for kind in (WEIGHT, ACTIVATION)
    }
    with torch.no_grad():
        right = (by_hand(model, chosen).argmax(1) == labels).float().mean()
    assert found.accuracy.found == right >= 0.75


def slow_search(problem: Problem, order_of: Any, holds: Any, greedy: bool) -> dict[Any, int]:
    """Every count of the least sensitive is tried, from none on; or one after another."""
    chosen = problem.uniform()
    for bits, above in ((6, 8), (4, 6), (3, 4), (2, 3)):
        able = [width for width, own in chosen.items() if own == above]
        able.sort(key=lambda width, bits=bits: order_of[width][bits])
        if greedy:
            for width in able:
                if holds({**chosen, width: bits}):
                    chosen = {**chosen, width: bits}
            continue
        counts = [n for n in range(len(able) + 1) if holds(chosen | dict.fromkeys(able[:n], bits))]
        chosen = chosen | dict.fromkeys(able[: max(counts)], bits)
    return chosen


@pytest.mark.parametrize(("search", "metric"), product(("bisection", "greedy"), ("error", "kl")))
def test_sensitivity_against_a_slow_search(problem: Problem, search: str, metric: str) -> None:
    """With a loss that adds up, so that accuracy falls with every step."""
    losses = metrics.losses_by(metric, problem, [IMAGES], 16)
    cost_of_a_step = {width: 1.0 + index for index, width in enumerate(problem.candidates)}
    for most in (0.0, 6.0, 17.0, 60.0):

        def holds(chosen: Any, most: float = most) -> bool:
            lost = sum(cost_of_a_step[width] * (8 - bits) for width, bits in chosen.items())
            return lost <= most

        found = sensitivity(problem, [IMAGES], 16, holds, metric=metric, search=search)
        assert found.bits == slow_search(problem, losses, holds, search == "greedy")


def test_sensitivity_keeps_the_accuracy(model: nn.Module) -> None:
    evaluate = near_to(model)
    options: Any = {"strategy": "sensitivity", "data": [IMAGES], "input_shape": SHAPE}
    found = allocate(
        model, accuracy_drop=0.1, evaluate=evaluate, options={"search": "greedy"}, **options
    )
    assert found.accuracy is not None and found.accuracy.found >= -0.1
    chosen = {
        (site, kind): getattr(pair, kind)
        for site, pair in found.assignment.items()
        for kind in (WEIGHT, ACTIVATION)
    }
    with torch.no_grad():
        assert evaluate(lambda _: by_hand(model, chosen)) == found.accuracy.found
        for width, bits in chosen.items():  # greedy: nothing more goes down alone
            if bits > 2:
                lower = {**chosen, width: bits - 1}
                assert evaluate(lambda _, c=lower: by_hand(model, c)) < -0.1


@pytest.mark.parametrize("strategy", ["supernet", "sqnr", "sensitivity"])
def test_of_a_network_of_run_time_bit_widths(model: nn.Module, strategy: str) -> None:
    net = multiquantize(model, [2, 4, 8], method="adabits", input_shape=SHAPE)
    calibrate(net, [IMAGES])
    labels = torch.arange(16) % 5
    with torch.no_grad():
        whole = assigned_norms(net, net.assignment, [IMAGES], batches=1).eval()(IMAGES)

    def evaluate(one: nn.Module) -> float:
        return -float((one(IMAGES) - whole).norm() / whole.norm())

    found = allocate(
        net.eval(),
        accuracy_drop=0.3,
        evaluate=evaluate,
        strategy=strategy,
        data=[(IMAGES, labels)],
    )
    assert found.accuracy is not None and found.accuracy.found >= -0.3
    view = assigned_norms(net, found.assignment, [IMAGES], batches=1).eval()
    with torch.no_grad():
        assert evaluate(view) == found.accuracy.found
    assert not found.assignment.is_uniform or strategy != "sqnr"


def test_divergence_against_its_formula(model: nn.Module, sites: Sites, problem: Problem) -> None:
    found = kl.divergence(problem, [IMAGES[:10], IMAGES[10:]], 16)
    run = Simulation(sites)
    with torch.no_grad():
        before = F.softmax(model(IMAGES).double(), 1)
        after = F.softmax(run.changed([("last", WEIGHT)], 2, IMAGES).double(), 1)
    expected = float((before * (before / after).log()).sum() / 16)
    # the network runs in fp32 on batches of other sizes
    assert found["last", WEIGHT][2] == pytest.approx(expected, rel=1e-4)
    assert min(min(of.values()) for of in found.values()) >= -1e-12


def test_quantization_error_against_its_formula(model: nn.Module, problem: Problem) -> None:
    found = metrics.quantization_error(problem, [IMAGES], 16)
    own: Any = model
    change, power = 0.0, 0.0
    for layer in (own.left, own.right):
        weight = layer.weight.detach()
        less = quantized(weight, 3, *best_range(weight, 3, symmetric=True))
        change += float((less - weight).double().square().sum())
        power += float(weight.double().square().sum())
    assert found["left", WEIGHT][3] == pytest.approx(change / power, rel=1e-12)  # fp64 sums
    with torch.no_grad():
        read = own.stem(IMAGES).relu()
        less = quantized(read, 4, *best_range(read, 4))
    expected = float((less - read).double().square().sum() / read.double().square().sum())
    assert found["left", ACTIVATION][4] == pytest.approx(expected, rel=1e-12)
