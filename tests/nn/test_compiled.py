"""torch.compile: every bit-width once in training and once in evaluation, counted."""

import copy
import random
import warnings
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn

from brevitas_multiquant import Assignment, MultiQuantNet, calibrate
from brevitas_multiquant.nn.compiled import compiled_by_bits

KEPT = 4
"""Graphs of one function that torch keeps here, instead of 8: fewer have to be compiled."""

BITS = (2, 3, 4)
"""More graphs, in both modes, than that; all fifteen take a minute."""


class Counting:
    """A backend that runs graphs as they are and counts them."""

    def __init__(self) -> None:
        self.graphs = 0

    def __call__(
        self, graph: torch.fx.GraphModule, _example: list[Tensor]
    ) -> Callable[..., Tensor]:
        self.graphs += 1
        return graph.forward


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.fixture
def small(make_net: Callable[..., MultiQuantNet], images: Tensor) -> Callable[..., MultiQuantNet]:
    """A calibrated network of one quantized layer."""

    def make(bits: tuple[int, ...], **options: str) -> MultiQuantNet:
        model = nn.Sequential(
            *(nn.Conv2d(3, 2, 1), nn.ReLU(), nn.Conv2d(2, 2, 1), nn.ReLU()),
            *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 2)),
        )
        net = make_net(model, bits, **options)
        calibrate(net, [images])
        return net

    return make


def run_everywhere(net: MultiQuantNet, run: Callable[[Tensor], Tensor], images: Tensor) -> dict:
    """Training and evaluation of every bit-width: logits, and gradients where there are."""
    found = {}
    for training in (True, False):
        net.train(training)
        for bits in net.bits:
            net.zero_grad()
            with net.at_bits(bits), torch.set_grad_enabled(training):
                logits = run(images)
                found[training, bits, "logits"] = logits.detach()
                if training:
                    logits.square().sum().backward()
                    gradients = [p.grad.flatten() for p in net.parameters() if p.grad is not None]
                    found[training, bits, "gradient"] = torch.cat(gradients)
    return found


@pytest.fixture(autouse=True)
def _few_graphs() -> Iterator[None]:
    with torch._dynamo.config.patch(recompile_limit=KEPT):
        yield


def test_every_bit_width_is_compiled_once_in_either_mode(
    small: Callable[..., MultiQuantNet], images: Tensor
) -> None:
    net = small(BITS)
    expected = run_everywhere(net, net, images)
    limit, counting = torch._dynamo.config.recompile_limit, Counting()
    assert 2 * len(BITS) > limit == KEPT
    net.compile(backend=counting, fullgraph=True, dynamic=False)
    for _ in range(2):
        got = run_everywhere(net, net, images)
        assert counting.graphs == 2 * len(BITS)
    assert torch._dynamo.config.recompile_limit == limit
    assert got.keys() == expected.keys()
    for key, value in expected.items():
        # a graph sums gradients in another order
        torch.testing.assert_close(got[key], value, rtol=1e-5, atol=1e-6)


def test_parts_and_methods_are_counted_apart(
    small: Callable[..., MultiQuantNet], images: Tensor
) -> None:
    """What the recipes compile: a branch, and the forward with stand-ins."""
    bits = (2, 4, 6)
    net, counting = small(bits, selection="serial").train(), Counting()
    options = {"backend": counting, "fullgraph": True, "dynamic": False}
    branch = compiled_by_bits(net, net.branches[0].forward, **options)
    stand_ins = compiled_by_bits(net, net.forward_with_stand_ins, **options)
    features = net.stem(images).detach()
    for _ in range(2):
        for bit in bits:
            with net.at_bits(bit):
                assert torch.equal(branch(features), net.branches[0](features))
                others = [2] if bit > 2 else []
                for got, expected in zip(
                    stand_ins(images, others),
                    net.forward_with_stand_ins(images, others),
                    strict=True,
                ):
                    assert torch.equal(got, expected)
        assert counting.graphs == 2 * len(bits)


def test_too_many_bit_widths_for_one_function_are_told(
    small: Callable[..., MultiQuantNet], images: Tensor
) -> None:
    few, many = small((2, 4)), small((2, 4, 6))
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        torch.compile(few, backend="eager", fullgraph=True)(images)
        many.compile(backend="eager", fullgraph=True)
        many(images)
    torch._dynamo.reset()
    with pytest.warns(UserWarning, match=r"needs 6, .* of 3 bit-widths.*Call net\.compile\(\)"):
        torch.compile(small((2, 4, 6)), backend="eager", fullgraph=True)(images)


def test_a_whole_graph_right_after_a_state_dict_was_loaded(
    small: Callable[..., MultiQuantNet], images: Tensor
) -> None:
    """Whether ranges have seen data is in tensors, which a graph cannot ask."""
    net = small((2,)).eval()
    with torch.no_grad():
        expected = net(images)
        net.load_state_dict(net.state_dict())
        net.compile(backend="eager", fullgraph=True)
        assert torch.equal(net(images), expected)


def test_a_block_inside_of_a_compiled_step(
    small: Callable[..., MultiQuantNet], images: Tensor
) -> None:
    """One graph of both bit-widths, made once, whoever else looked at the network."""
    net, counting = small((2, 4)).eval(), Counting()

    def step(x: Tensor) -> Tensor:
        with net.at_bits(2):
            low = net(x)
        with net.at_bits(4):
            return low + net(x)

    compiled = torch.compile(step, backend=counting, fullgraph=True)
    with torch.no_grad():
        expected = step(images)
        for _ in range(3):
            assert torch.equal(compiled(images), expected)
            step(images)  # switches outside of a graph
    assert (counting.graphs, net.active_bits) == (1, 4)


def test_copies_and_views_are_not_compiled(
    small: Callable[..., MultiQuantNet], images: Tensor
) -> None:
    """They would run the original's graphs, at the original's bit-width."""
    net, counting = small((2, 4)).eval(), Counting()
    expected = net.view(2)(images)
    net.compile(backend=counting)
    for other in (net.view(2), copy.deepcopy(net).view(2)):
        assert torch.equal(other(images), expected)
    assert counting.graphs == 0
    view = net.view(2)
    view.compile(backend=counting, fullgraph=True)
    assert torch.equal(view(images), expected) and counting.graphs == 1


def mixed_settings(net: MultiQuantNet, bits: int, count: int) -> list[Assignment]:
    """Assignments with sites at bits of their own, all different."""
    found: dict[Assignment, None] = {}
    draw = random.Random(0)
    while len(found) < count:
        pairs = [(draw.choice(net.bits), draw.choice(net.bits)) for _ in net.sites]
        weights = [weight if net.config.method == "adabits" else 2 for weight, _ in pairs]
        own = zip(net.sites, zip(weights, [a for _, a in pairs], strict=True), strict=True)
        one = Assignment(bits, dict(own))
        if not isinstance(net.view(one).setting, int):
            found[one] = None
    return list(found)


def run_assigned(
    net: MultiQuantNet, settings: list[Assignment], images: Tensor, training: bool
) -> list[Tensor]:
    """Logits and, in training, all gradients of each."""
    found = []
    net.train(training)
    for one in settings:
        net.zero_grad()
        with net.at_bits(one), torch.set_grad_enabled(training):
            logits = net(images)
        found.append(logits.detach())
        if training:
            logits.square().sum().backward()
            grads = [p.grad.flatten() for p in net.parameters() if p.grad is not None]
            found.append(torch.cat(grads))
    return found


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"profile": "finn"},
        {"method": "adabits"},
        {"method": "adabits", "grid": "original"},
        {"method": "double_rounding"},
    ],
    ids=lambda options: "-".join(options.values()) or "paper",
)
def test_one_graph_serves_every_assignment(
    make_net: Callable[..., MultiQuantNet], images: Tensor, options: dict
) -> None:
    """More of them than torch keeps graphs; a graph sums gradients in another order."""
    net, counting = make_net(bits=(2, 3, 4), **options), Counting()
    calibrate(net, [images])
    settings = mixed_settings(net, 4, KEPT + 2)
    eager = copy.deepcopy(net)
    expected = [run_assigned(eager, settings, images, training) for training in (True, False)]
    net.compile(backend=counting, fullgraph=True, dynamic=False)
    for training, values in zip((True, False), expected, strict=True):
        for got, value in zip(run_assigned(net, settings, images, training), values, strict=True):
            torch.testing.assert_close(got, value, rtol=1e-5, atol=1e-6)
    assert counting.graphs == 2  # in training, and in evaluation
    with net.at_bits(4), torch.no_grad():
        net(images)
    assert counting.graphs == 3  # of the bit-width alone, whose numbers it knows
    run_assigned(net, settings, images, False)
    assert counting.graphs == 3


def test_a_graph_of_assignments_may_run_backward_later(
    make_net: Callable[..., MultiQuantNet], images: Tensor
) -> None:
    """After another assignment has run: what was told is not overwritten."""
    net = make_net(bits=(2, 4))
    calibrate(net, [images])
    first, second = mixed_settings(net, 4, 2)
    (_, expected) = run_assigned(net, [first], images, True)
    net.compile(backend="aot_eager", fullgraph=True, dynamic=False)
    net.zero_grad()
    with net.at_bits(first):
        logits = net(images)
    with net.at_bits(second):
        net(images)
    logits.square().sum().backward()
    got = torch.cat([p.grad.flatten() for p in net.parameters() if p.grad is not None])
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)


def test_where_sites_choose_norms_assignments_run_uncompiled_and_that_is_told(
    make_net: Callable[..., MultiQuantNet], images: Tensor
) -> None:
    net, counting = make_net(bits=(2, 4), method="bit_mixer"), Counting()
    calibrate(net, [images])
    mixed = Assignment(4, {"conv1": (2, 2)})
    with torch.no_grad(), net.eval().at_bits(mixed):
        expected = net(images)
    net.compile(backend=counting, fullgraph=True, dynamic=False)
    told = pytest.warns(UserWarning, match=r"so it runs uncompiled.*extract_subnet\(net, assign")
    with told, torch.no_grad(), net.at_bits(mixed):
        assert torch.equal(net(images), expected)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("error", UserWarning)
        for bits in net.bits:
            with net.at_bits(bits):
                net(images)
        with net.at_bits(mixed):
            net(images)
    assert counting.graphs == len(net.bits)


def test_one_function_for_assignments_is_told(
    small: Callable[..., MultiQuantNet], images: Tensor
) -> None:
    net = small((2, 4)).eval()
    compiled = torch.compile(net, backend="eager", fullgraph=True)
    told = pytest.warns(UserWarning, match=r"a graph for each assignment.*Call net\.compile\(\)")
    with told, net.at_bits(Assignment(4, {net.sites[0]: (2, 2)})):
        compiled(images)
