"""Gates that choose bit-widths: what they expect, what is drawn, and the network that is left."""

import math
import warnings
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from brevitas_multiquant import Assignment, cost, extract_subnet, multiquantize
from brevitas_multiquant.allocation import Budget, GateSearch, allocate
from brevitas_multiquant.errors import BudgetError, CalibrationError, ConfigError
from brevitas_multiquant.quant.gated_bits import OPEN, GatedBits
from tests.allocation.test_bit_search import EIGHT, LABELS, Plain, digits, individual, optimizers_of
from tests.tiny import IMAGE, TinyNet

PRUNING = (0, 2, 4, 8)


def drawn(gates: GatedBits, seed: int) -> Tensor:
    gates.draw(torch.Generator().manual_seed(seed))
    return gates.shares().detach()


def test_gates_are_open_as_often_as_they_say_and_have_the_distribution_of_the_paper() -> None:
    """Of many draws; P(z > 0) is what is learned, and the expected bits follow from it."""
    gates = GatedBits([2, 4, 8], 4.0)
    assert gates.value.item() == pytest.approx(4.0, abs=1e-5)
    with torch.no_grad():
        gates.open.copy_(torch.tensor([0.8, 0.3]))
    assert gates.value.item() == pytest.approx(2 + 0.8 * 2 + 0.8 * 0.3 * 4)
    shares = torch.stack([drawn(gates, seed) for seed in range(4000)])
    assert torch.allclose(shares.sum(1), torch.ones(4000))
    more = 1 - shares[:, 0]  # z_4, as z_2 is open
    # three standard errors of a share of 4000
    assert (more > 0).float().mean().item() == pytest.approx(0.8, abs=0.02)
    location = math.log(0.8 / 0.2) + 2 / 3 * math.log(0.1 / 1.1)
    at_one = torch.sigmoid(torch.tensor(location - 2 / 3 * math.log(11.0)))
    assert (more == 1).float().mean().item() == pytest.approx(at_one.item(), abs=0.03)


def test_in_evaluation_gates_are_open_or_shut() -> None:
    gates = GatedBits(PRUNING, 4.0, (3, 1)).eval()
    with torch.no_grad():
        gates.open.copy_(torch.tensor([OPEN + 0.01, OPEN - 0.01]))
        gates.kept.copy_(torch.tensor([[0.9], [0.5], [0.7]]))
    expected = torch.tensor([[0.0, 0.0, 0.0], [1.0, 0.0, 1.0], [0.0, 0.0, 0.0]])
    assert torch.equal(gates.shares().squeeze(-1), expected)
    (lane,) = gates.lanes()
    assert lane.channels == (0, 2) and lane.candidates == (2, 4, 8)
    gates.set([4, 0, 4])
    assert gates.value.flatten().tolist() == [4.0, 0.0, 4.0]


def test_whole_bits_are_the_network_of_codes(images: Tensor) -> None:
    net = individual(TinyNet(), images).eval()
    search = GateSearch(net, Budget(uniform=4))
    for bits in (4, 8):
        for one in search.widths.each():
            one.set(bits)
        values = net(images)
        assert search.ratio() == pytest.approx((bits / 4) ** 2)
        mixed = Assignment(8, dict.fromkeys(net.sites, (bits, bits)))
        twin = multiquantize(TinyNet(), mixed, **EIGHT).eval()
        twin.load_state_dict(net.state_dict(), strict=False)
        # values in place of codes: sums of 54 products in another order
        assert (values - twin(images)).abs().max() < 1e-4


@pytest.mark.parametrize("channels", [None, PRUNING])
def test_a_search_on_digits_holds_its_budget(channels: Any) -> None:
    torch.manual_seed(0)
    images, labels = digits()
    net = individual(Plain(8), images[:64]).train()
    search = GateSearch(net, Budget(uniform=4), channels=channels)
    optimizers, steps, ratios, losses = optimizers_of(net), 150, [], []
    for step in range(steps):
        batch = slice(64 * (step % 10), 64 * (step % 10) + 64)
        for one in optimizers:
            one.zero_grad()
        search.at(0, 1, step)
        parts = search(images[batch], labels[batch])
        parts["loss"].backward()
        for one in optimizers:
            one.step()
        search.update_bits(step / steps)
        ratios.append(search.ratio())
        losses.append(parts["ce"][8].item())
    print(ratios[::10], losses[::10], search.bits())
    assert all(abs(one - 1) < 0.05 for one in ratios[-10:])
    assert losses[-1] < 0.6 * losses[0]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        settled = search.settle()
    found = settled.allocation
    assert 0.7 < found.cost / found.budget <= 1
    assert {bits for pair in found.assignment.values() for bits in pair} <= {2, 4, 8}
    assert cost(net)[8].bitops == pytest.approx(found.cost)
    net.eval()
    with torch.no_grad():
        assert torch.equal(extract_subnet(net, 8)(images[:8]), net(images[:8]))


def test_pruned_channels_are_removed(images: Tensor) -> None:
    """Their gates decide, not the budget; the layers behind lose an input."""
    net = individual(Plain(), images).train()
    search = GateSearch(net, Budget(uniform=4), channels=PRUNING)
    gates = search.widths.of_layer["conv1"]
    assert isinstance(gates, GatedBits) and gates.kept is not None
    with torch.no_grad():
        gates.kept.flatten()[[1, 4]] = OPEN - 0.1
    settled = search.settle()
    bits = settled.channels["conv1"]
    assert [index for index, one in enumerate(bits) if not one] == [1, 4]
    assert len(set(bits)) == 2 and settled.allocation.cost <= settled.allocation.budget
    F.cross_entropy(net(images), LABELS).backward()
    plain = extract_subnet(net.eval(), 8)
    shapes = {name: tuple(value.shape) for name, value in plain.named_parameters()}
    of_conv = {name: shape for name, shape in shapes.items() if len(shape) == 4}
    assert (4, 6, 3, 3) in of_conv.values() and (6, 4, 3, 3) in of_conv.values()
    with torch.no_grad():
        assert torch.equal(plain(images), net(images))


@pytest.mark.filterwarnings("ignore::brevitas_multiquant.errors.UniformBitsWarning")
def test_a_short_search_for_a_float_model(images: Tensor) -> None:
    model = TinyNet().eval()
    options: Any = {"strategy": "bayesian_bits", "input_shape": IMAGE}
    data = [(images, LABELS)]
    found = allocate(model, Budget(uniform=4), data=data, options={"steps": 8}, **options)
    assert found.strategy == "bayesian_bits" and found.cost <= found.budget
    assert {bits for pair in found.assignment.values() for bits in pair} <= {2, 4, 8}
    again = allocate(model, Budget(uniform=4), data=data, options={"steps": 8}, **options)
    assert again.assignment == found.assignment  # what is drawn is a function of the seed
    with pytest.raises(CalibrationError, match=r"bayesian_bits.*labels"):
        allocate(model, Budget(uniform=4), data=[images], **options)


def test_refused(images: Tensor) -> None:
    net = individual(TinyNet(), images).train()
    with pytest.raises(BudgetError, match="for bits of single channels"):
        GateSearch(
            net,
            Budget(custom=30.0, cost=lambda layer, weight, read: weight * read),
            channels=PRUNING,
        )
    search = GateSearch(net, Budget(uniform=4))
    with pytest.raises(ConfigError, match="expected to know the step"):
        search(images, LABELS)
