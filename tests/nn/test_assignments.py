"""Networks that run each site at bits of its own, against the paper's formulas in fp64."""

import copy
import itertools
import pickle
import threading
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from brevitas_multiquant import (
    Assignment,
    ModelSource,
    MultiQuantNet,
    calibrate,
    extract_subnet,
    load_packed,
    multiquantize,
    save_packed,
)
from brevitas_multiquant.errors import BitWidthError, ConcurrentUseError
from brevitas_multiquant.nn.switchable import SwitchableNorm, SwitchableQuantizer
from brevitas_multiquant.profiles.finn.modules import CodesToValues
from brevitas_multiquant.quant.layers import CodeLayer, weight_range
from brevitas_multiquant.quant.proxies import activation_tensor_quant
from tests.reference import activation_values, weight_values
from tests.tiny import IMAGE, BranchingOnData, SharedLayerNet

SITES = ("conv1", "conv2")
KINDS = [("paper", (2, 4)), ("paper", (2, 3, 4)), ("finn", (2, 4)), ("finn", (2, 3, 4))]
kinds = pytest.mark.parametrize(("profile", "bits"), KINDS)


class Residual(nn.Module):
    """A block whose shortcut reads the stem's output as it is."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1, bias=False)
        self.stem_bn = nn.BatchNorm2d(4)
        self.conv1 = nn.Conv2d(4, 6, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(6)
        self.conv2 = nn.Conv2d(6, 4, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(4)
        self.fc = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem_bn(self.stem(x)))
        y = torch.relu(self.bn1(self.conv1(x)))
        x = torch.relu(x + self.bn2(self.conv2(y)))
        return self.fc(x.mean((2, 3)))


@cache
def trained(profile: str, bits: tuple[int, ...]) -> MultiQuantNet:
    """Calibrated, with norms that do something; in evaluation mode."""
    torch.manual_seed(0)
    net = multiquantize(Residual(), bits, input_shape=IMAGE, profile=profile, branch_init="shuffle")
    calibrate(net, [torch.randn(8, *IMAGE[1:])])
    for norm in net.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.uniform_(norm.bias, -0.2, 0.2)
    return net.eval()


def settings_of(net: MultiQuantNet) -> list[Assignment]:
    """Every assignment that there is."""
    choices = itertools.product(net.bits, repeat=len(net.sites))
    return [
        Assignment(bits, {site: (2, own) for site, own in zip(net.sites, chosen, strict=True)})
        for chosen in choices
        for bits in net.bits
    ]


class Formulas(fx.Interpreter):
    """Runs a part in the domain of values: eqs. 1 to 3, a convolution, a batch norm, all in fp64.

    Modules that know neither codes nor branches are run as they are.
    """

    def __init__(self, part: Any, assignment: Assignment) -> None:
        super().__init__(part)
        self.assignment = assignment

    def call_module(self, target: Any, args: Any, kwargs: Any) -> Tensor:
        module: Any = self.fetch_attr(target)
        x, bits = args[0], str(self.assignment.bits)
        if isinstance(module, SwitchableQuantizer):
            site = target.removeprefix("input_quants.").replace("first_quant", "conv1")
            lower, upper = range_of(module[bits])
            return activation_values(x, lower, upper, self.assignment[site].activation)
        if isinstance(module, CodesToValues):
            lower, upper = range_of(module._quantizer[0][bits])
            return lower + x * (upper - lower)
        if isinstance(module, CodeLayer):
            learned = weight_range(module)
            weight = weight_values(
                module.weight.double(), learned.lower.double(), learned.upper.double()
            )
            bias = None if module.bias is None else module.bias.double()
            return F.conv2d(x, weight, bias, module.stride, module.padding)
        if isinstance(module, SwitchableNorm):
            norm: Any = module[bits]
            numbers = (norm.running_mean, norm.running_var, norm.weight, norm.bias)
            return F.batch_norm(x, *(n.double() for n in numbers), training=False, eps=norm.eps)
        return module(*(arg.float() for arg in args), **kwargs).double()


def range_of(quantizer: Any) -> tuple[Tensor, Tensor]:
    learned = activation_tensor_quant(quantizer).range_impl
    return learned.lower.double(), learned.upper.double()


def from_formulas(net: MultiQuantNet, x: Tensor, assignment: Assignment) -> Tensor:
    """What a network is to give at an assignment; its dials are left at one bit-width."""
    with net.at_bits(assignment.bits):
        features = Formulas(net.stem, assignment).run(x.double())
        branches = net.branches_at(assignment.bits)
        outputs = [Formulas(branch, assignment).run(features).float() for branch in branches]
        return net.head(net.merge(outputs))


def at(net: MultiQuantNet, setting: int | Assignment, x: Tensor) -> Tensor:
    with net.at_bits(setting):
        return net(x)


@kinds
@torch.no_grad()
def test_every_assignment_is_what_the_formulas_say(profile, bits, images):
    net = trained(profile, bits)
    assert net.sites == SITES
    found = set()
    for assignment in settings_of(net):
        logits = at(net, assignment, images)
        # fp32 sums of some tens of terms against fp64
        torch.testing.assert_close(
            logits, from_formulas(net, images, assignment), rtol=1e-4, atol=1e-5
        )
        found.add(tuple(logits.flatten().tolist()))
    assert len(found) == len(bits) ** 3  # no two of them are the same


@pytest.mark.parametrize(("profile", "bits"), KINDS[:2])
def test_gradients_are_those_of_the_formulas(profile, bits, images):
    net = trained(profile, bits)
    named = {name: p for name, p in net.named_parameters() if not name.startswith(("stem", "head"))}
    for assignment in settings_of(net)[::2]:
        found = [
            torch.autograd.grad(run.square().sum(), list(named.values()), allow_unused=True)
            for run in (at(net, assignment, images), from_formulas(net, images, assignment))
        ]
        for name, ours, theirs in zip(named, *found, strict=True):
            if theirs is None:
                assert ours is None, name
            else:  # sums over some hundreds of fp32 numbers
                torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4, msg=name)


@kinds
def test_training_at_an_assignment_reaches_every_running_parameter(profile, bits, images):
    net = copy.deepcopy(trained(profile, bits)).train()
    net.set_active_bits(Assignment(4, {"conv1": (2, 2), "conv2": (2, 4)}))
    net(images).square().sum().backward()
    for branch in net.branches_at(4):
        for name, parameter in branch.named_parameters():
            runs = not {"2", "3"} & set(name.split("."))
            assert (parameter.grad is not None) == runs, name
            assert parameter.grad is None or parameter.grad.isfinite().all(), name


@kinds
@pytest.mark.parametrize("training", [False, True])
def test_a_uniform_assignment_is_the_bit_width(profile, bits, training, images):
    net = copy.deepcopy(trained(profile, bits)).train(training)
    for bit in bits:
        assert torch.equal(at(net, Assignment.uniform(net, bit), images), at(net, bit, images))
        assert torch.equal(at(net, Assignment(bit, {}), images), at(net, bit, images))


@kinds
@torch.no_grad()
def test_the_subnet_of_an_assignment_is_equal_to_the_bit(profile, bits, images):
    net = trained(profile, bits)
    before = net.setting
    for assignment in settings_of(net):
        subnet = extract_subnet(net, assignment)
        assert torch.equal(subnet(images), at(net, assignment, images))
        assert subnet.bits == assignment.bits and subnet.inexact == ()
    mixed = settings_of(net)[1]
    with net.at_bits(mixed):  # what is active does not matter
        for bit in bits:
            assert torch.equal(extract_subnet(net, bit)(images), at(net, bit, images))
        assert net.setting == mixed
    assert net.setting == before


class TestSettings:
    def test_what_is_left_out_has_the_network_s_bits(self, net):
        net.set_active_bits(Assignment(4, {"conv2": (2, 2)}))
        assert net.active_bits == 4
        assert net.assignment == Assignment(4, {"conv1": (2, 4), "conv2": (2, 2)}) == net.setting
        net.set_active_bits(2)
        assert net.setting == 2 and net.assignment == Assignment.uniform(net, 2)

    def test_blocks_and_views_restore(self, net):
        outer, inner = (Assignment(4, {"conv2": (2, 2)}), Assignment(2, {"conv1": (2, 4)}))
        with net.at_bits(outer), net.view(inner).at_bits(outer) as view:
            with view.at_bits(2), net.at_bits(inner):
                assert view.setting == 2 and net.assignment["conv1"].activation == 4
            assert net.assignment == view.assignment != Assignment.uniform(net, 4)
            assert net.view().setting == net.setting
        assert net.setting == 4 and view.assignment["conv1"].activation == 4
        assert view.active_bits == 2

    @pytest.mark.parametrize("caller", ["set_active_bits", "at_bits", "view", "extract_subnet"])
    @pytest.mark.parametrize(
        ("wrong", "message"),
        [
            (Assignment(4, {"conv3": (2, 2)}), "got 'conv3'; did you mean 'conv"),
            (Assignment(4, {"conv1": (2, 3)}), r"conv1: expected activation bits of \[2, 4\]"),
            (Assignment(4, {"conv1": (4, 4)}), "conv1: expected the 2-bit weights of branches"),
            (Assignment(6, {}), r"expected one of the bit-widths \[2, 4\] .* got 6"),
            ({"conv1": (2, 2)}, r"expected one of the bit-widths \[2, 4\] .* got {'conv1'"),
        ],
    )
    def test_what_does_not_fit_is_refused(self, net, caller, wrong, message):
        with pytest.raises(BitWidthError, match=f"{caller}: .*{message}"):
            if caller == "at_bits":
                net.at_bits(wrong).__enter__()
            elif caller == "extract_subnet":
                extract_subnet(net, wrong)
            else:
                getattr(net, caller)(wrong)
        assert net.setting == 4

    @torch.no_grad()
    @pytest.mark.parametrize("copied", [copy.deepcopy, lambda n: pickle.loads(pickle.dumps(n))])
    def test_copies_have_dials_of_their_own(self, copied, images):
        net = trained(*KINDS[1])
        mixed = Assignment(3, {"conv1": (2, 4), "conv2": (2, 2)})
        with net.at_bits(mixed):
            other, expected = copied(net), net(images)
        assert other.setting == mixed and torch.equal(other(images), expected)
        other.set_active_bits(2)
        assert net.active_bits == 4 and torch.equal(at(net, mixed, images), expected)

    @torch.no_grad()
    def test_a_packed_file_runs_at_assignments_too(self, images, tmp_path):
        net = copy.deepcopy(trained(*KINDS[0]))
        net.source = ModelSource("own", "Residual")
        back = load_packed(save_packed(net, tmp_path / "net.safetensors"), Residual())
        assert back.sites == net.sites
        for assignment in settings_of(net):
            assert torch.equal(at(back, assignment, images), at(net, assignment, images))


class TestThreads:
    @torch.no_grad()
    def test_views_at_different_assignments(self, images):
        net = trained(*KINDS[1])
        settings = settings_of(net)
        expected = [at(net, setting, images) for setting in settings]
        wrong: list[Assignment] = []

        def serve(first: int) -> None:
            for index in range(first, len(settings), 2):
                view = net.view(settings[index])
                for _ in range(3):
                    with torch.no_grad():
                        if not torch.equal(view(images), expected[index]):
                            wrong.append(settings[index])

        threads = [threading.Thread(target=serve, args=(first,)) for first in (0, 1)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not wrong and net.setting == 4

    def test_a_site_turned_midway_is_noticed(self, net, images):
        """Another thread that changes no more than one site's bits."""

        def turn(*_: Any) -> None:
            change = Assignment(4, {"conv2": (2, 2)})
            other = threading.Thread(target=lambda: net.set_active_bits(change))
            other.start()
            other.join()

        net.branches[0].bn1.register_forward_hook(turn)
        with pytest.raises(ConcurrentUseError, match="from stem to head"):
            net.eval()(images)

    def test_another_thread_s_block_is_respected(self, net):
        refused: list[Exception] = []

        def switch() -> None:
            try:
                net.set_active_bits(Assignment(2, {}))
            except ConcurrentUseError as error:
                refused.append(error)

        with net.at_bits(Assignment(4, {"conv1": (2, 2)})):
            other = threading.Thread(target=switch)
            other.start()
            other.join()
            assert net.assignment["conv1"].activation == 2
        assert len(refused) == 1


class TestCompiled:
    @pytest.mark.parametrize("training", [False, True])
    def test_whole_graphs_and_none_too_many(self, training, images):
        """One for each setting, whatever the order in which they come."""
        torch._dynamo.reset()
        net = copy.deepcopy(trained("paper", (2, 4))).train(training)
        settings = [2, Assignment(2, {"conv1": (2, 4)}), 4, Assignment(4, {"conv2": (2, 2)})]
        reference = copy.deepcopy(net)
        graphs = []

        def backend(graph: fx.GraphModule, _example: Any) -> Callable[..., Any]:
            graphs.append(graph)
            return graph.forward

        net.compile(backend=backend, fullgraph=True, dynamic=False)
        with torch.set_grad_enabled(training):
            for setting in (*settings, *reversed(settings), *settings[:2]):
                expected = at(reference, setting, images)
                assert torch.equal(at(net, setting, images), expected)
                uniform = setting if isinstance(setting, Assignment) else Assignment(setting, {})
                assert torch.equal(at(net, uniform, images), at(reference, uniform, images))
        assert len(graphs) == len(settings)
        torch._dynamo.reset()


class Shared(nn.Module):
    """One layer reads what two others read apart."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.first = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.second, self.both = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)
        self.alone, self.fc = nn.Conv2d(4, 4, 1), nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        y = torch.relu(self.first(x))
        z = torch.relu(self.second(y))
        x = self.both(x) + self.both(y)
        return self.fc((x + torch.relu(self.alone(z))).mean((2, 3)))


class TestSites:
    @torch.no_grad()
    @pytest.mark.parametrize("profile", ["paper", "finn"])
    @pytest.mark.parametrize(
        ("model", "sites"),
        [(Shared, ("first", "alone")), (SharedLayerNet, ("twice",))],
    )
    def test_tensors_that_one_layer_reads_are_one_site(
        self, make_net, images, model, sites, profile
    ):
        net = make_net(model(), profile=profile).eval()
        calibrate(net, [images])
        assert net.sites == sites
        for assignment in settings_of(net):
            logits = at(net, assignment, images)
            assert torch.equal(extract_subnet(net, assignment)(images), logits)
            torch.testing.assert_close(logits, from_values(net, assignment, images))

    @torch.no_grad()
    @pytest.mark.filterwarnings("ignore::brevitas_multiquant.errors.UntracedWarning")
    def test_layers_in_modules_that_cannot_be_traced(self, make_net, images):
        model = BranchingOnData()
        taken = next(x for x in (images, -images) if model.conv1(x).sum() > 0)
        net = make_net(model).eval()
        calibrate(net, [taken])
        assert "conv2" in net.sites[-1]
        mixed = Assignment(4, {net.sites[-1]: (2, 2)})
        logits = at(net, mixed, taken)
        assert not torch.equal(logits, at(net, 4, taken))
        torch.testing.assert_close(logits, from_values(net, mixed, taken))

    def test_a_layer_s_exactness_depends_on_its_input_s_bits(self, make_net, images):
        class Wide(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.stem, self.narrow = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1)
                self.wide, self.fc = nn.Linear(8 * 64, 4), nn.Linear(4, 5)

            def forward(self, x: Tensor) -> Tensor:
                x = torch.relu(self.narrow(torch.relu(self.stem(x))))
                return self.fc(torch.relu(self.wide(x.flatten(1))))

        net = make_net(Wide(), bits=(2, 14), check=False).eval()
        calibrate(net, [images])
        assert 8 * 64 * 3 * (2**14 - 1) > 2**24
        inexact = {
            (own, bits): extract_subnet(net, Assignment(bits, {"wide": (2, own)})).inexact
            for own in net.bits
            for bits in net.bits
        }
        assert inexact == {(2, 2): (), (2, 14): (), (14, 2): ("wide",), (14, 14): ("wide",)}


def from_values(net: MultiQuantNet, assignment: Assignment, x: Tensor) -> Tensor:
    """The network with layers that multiply values: no scale can go to the wrong layer."""
    values = copy.deepcopy(net)
    for module in values.modules():
        if isinstance(module, SwitchableQuantizer):
            module.register_forward_hook(lambda m, _, codes: codes / (2**m.dial.bits - 1))
    for module in list(values.modules()):
        if isinstance(module, CodesToValues):
            module._quantizer[0]._forward_hooks.clear()
        if isinstance(module, CodeLayer):
            module.__class__ = type("Values", (type(module),), {"output_scale": 1 / 3})
    return at(values, assignment, x)
