"""CSQ: the formula written out, the coefficient that changes its sign, and what is left."""

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from brevitas_multiquant import calibrate, extract_subnet, multiquantize
from brevitas_multiquant.allocation import Budget, allocate
from brevitas_multiquant.allocation.bit_plane_search import BitPlaneSearch
from brevitas_multiquant.errors import ConfigError
from brevitas_multiquant.quant.bit_planes import BitPlanes
from tests.tiny import IMAGE, TinyNet

LABELS = torch.tensor([0, 1, 2, 3])


def made(images: Tensor, **options: Any) -> BitPlaneSearch:
    torch.manual_seed(0)
    net = multiquantize(TinyNet(), [6], method="individual", input_shape=IMAGE)
    calibrate(net, [images])
    given = {"candidates": (2, 3, 4, 5, 6), **options}
    return BitPlaneSearch(net.train(), Budget(uniform=3), **given)


def sigma(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def test_against_the_formula() -> None:
    planes = BitPlanes(torch.tensor([0.7, -0.2, 0.0]), bits=4).requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    masks = torch.randn(4, generator=generator)
    with torch.no_grad():
        planes.positive.copy_(torch.randn(4, 3, generator=generator))
        planes.negative.copy_(torch.randn(4, 3, generator=generator))
        found = planes(masks, torch.tensor(1.5)).tolist()
    for index, one in enumerate(found):
        expected = sum(
            (
                sigma(1.5 * float(planes.positive[b, index]))
                - sigma(1.5 * float(planes.negative[b, index]))
            )
            * sigma(1.5 * float(masks[b]))
            * 2**b
            / 15
            for b in range(4)
        )
        assert one == pytest.approx(expected, abs=1e-6)


def test_it_starts_as_the_weights_rounded_and_ends_at_integers() -> None:
    values = torch.linspace(-1, 1, 31)
    planes = BitPlanes(values, bits=4)
    hard = planes(torch.ones(4), torch.tensor(1e4)).detach()
    assert torch.allclose(15 * hard, (15 * values).round(), atol=1e-4)
    soft = planes(torch.ones(4), torch.tensor(1.0)).detach()
    ratio = soft[hard != 0] / hard[hard != 0]
    # every soft bit is as much smaller as every other: the norm behind takes that out
    torch.testing.assert_close(ratio, ratio[:1].expand_as(ratio))
    without = planes(torch.tensor([-1.0, 1, 1, 1]), torch.tensor(1e4)).detach() * 15
    assert torch.allclose(without / 2, (without / 2).round(), atol=1e-4)


def test_the_coefficient_changes_its_sign_at_the_budget(images: Tensor) -> None:
    search = made(images, criterion=lambda logits, labels: 0 * logits.sum())
    ratios = []
    for step in range(120):
        search(images, LABELS)["loss"].backward()
        gradient = search.masks.values.grad
        assert gradient is not None
        torch.testing.assert_close(gradient, torch.full_like(gradient, search.ratio() - 1))
        search.update_bits(step / 120)
        ratios.append(search.ratio())
    assert ratios[0] > 1 and min(ratios[60:]) <= 1.3  # all bits move alike here: in large steps
    assert search.masks.temperature.item() == pytest.approx(200 ** (119 / 120), rel=1e-5)


def test_what_it_leaves(images: Tensor) -> None:
    search = made(images)
    net = search.net
    before = {name for name, _ in net.named_parameters()}
    assert any("planes" in name for name in before)
    optimizer = torch.optim.SGD(net.model_parameters(), 0.01)
    assert all(p is not search.masks.values for p in net.model_parameters())
    for step in range(20):
        optimizer.zero_grad()
        search(images, LABELS)["loss"].backward()
        optimizer.step()
        search.update_bits(step / 20)
    state = copy.deepcopy(net.state_dict())
    assert "masks.values" in state
    settled = search.settle().allocation
    assert settled.strategy == "csq" and settled.cost <= settled.budget
    assert {pair.activation for pair in settled.assignment.values()} == {3}
    assert net.assignment == settled.assignment
    assert not any("planes" in name or "masks" in name for name in net.state_dict())
    net.eval()
    with torch.no_grad():
        assert torch.equal(extract_subnet(net, 6)(images), net(images))


@pytest.mark.filterwarnings("ignore::brevitas_multiquant.errors.UniformBitsWarning")
def test_as_a_strategy(images: Tensor) -> None:
    found = allocate(
        TinyNet().eval(),
        Budget(uniform=3),
        strategy="csq",
        options={"steps": 10, "strength": 2.0},
        data=[(images, LABELS)],
        pins={"conv2": (5, None)},
        input_shape=IMAGE,
    )
    assert found.cost <= found.budget and found.assignment["conv2"].weight == 5
    with pytest.raises(ConfigError, match="strength: expected a positive number, got 0"):
        made(images, strength=0)
