"""Codes by coordinate descent: against a slow one, and errors measured by the layer itself."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from brevitas_multiquant import calibrate, multiquantize, reestimate_norms
from brevitas_multiquant.core.clip_quantize import activation_levels
from brevitas_multiquant.core.grids import ODD, WEIGHT_FORMATS, odd
from brevitas_multiquant.errors import ConfigError
from brevitas_multiquant.quant.layers import CodeLayer
from brevitas_multiquant.training.code_descent import (
    descend_codes,
    descended,
    unrounded,
)
from tests.tiny import IMAGE, TinyNet

NETS: dict[str, dict[str, Any]] = {
    "branches of 2 bits": {"bits": [2, 3, 4]},
    "int2": {"bits": [2, 4], "weights": "int2"},
    "binary": {"bits": [1], "method": "individual"},
    "2 bits": {"bits": [2], "method": "individual"},
}


class Grouped(nn.Module):
    """Groups, strides, a dilation and paddings."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.conv1 = nn.Conv2d(8, 12, 3, stride=2, padding=1, groups=4)
        self.bn = nn.BatchNorm2d(12)
        self.conv2 = nn.Conv2d(12, 6, 3, padding=2, dilation=2)
        self.fc = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn(self.conv1(self.stem(x).relu())).relu()
        return self.fc(self.conv2(x).relu().mean((2, 3)))


def slow(codes: Tensor, target: Tensor, gram: Tensor, integers: Any) -> list[int]:
    """One row: all single changes are tried, the best is taken, until none helps."""
    now = [int(one) for one in codes]

    def error(of: list[int]) -> float:
        difference = torch.tensor(of, dtype=torch.float64) - target
        return float(difference @ gram @ difference)

    while True:
        tried = [
            (error([*now[:k], other, *now[k + 1 :]]), k, other)
            for k in range(len(now))
            for other in integers
            if other != now[k]
        ]
        best = min(tried)
        if best[0] >= error(now) * (1 - 1e-9):
            return now
        now[best[1]] = best[2]


@pytest.mark.parametrize("grid", [ODD, WEIGHT_FORMATS["ternary"], odd(1), odd(3)], ids=str)
def test_against_all_single_changes(grid: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(7, 40, generator=generator).double()
    inputs += 2 * inputs.mean(0)  # correlated
    gram = inputs @ inputs.T
    target = grid.highest * torch.randn(5, 7, generator=generator).double()
    places = ((target - grid.offset) / grid.step).round().clamp(0, grid.levels)
    start = places * grid.step + grid.offset
    found = descended(start, target, gram, grid)
    for row in range(5):
        assert found[row].tolist() == slow(start[row], target[row], gram, grid.integers)
    assert not torch.equal(found, start)


def made(options: dict[str, Any], model: nn.Module, images: Tensor) -> Any:
    net = multiquantize(model, input_shape=IMAGE, **options)
    calibrate(net, [images])
    return net.eval()


@torch.no_grad()
def error_of(net: Any, name: str, images: Tensor, target: Tensor) -> Tensor:
    """By channel: its output with its codes, and with the real numbers, over all bit-widths."""
    layer = net.get_submodule(name)
    total = torch.zeros(len(layer.weight), dtype=torch.float64)

    def add(_: Any, inputs: Any) -> None:
        x = inputs[0].double() / activation_levels(layer.input_dial.bits)
        difference = layer.quant_weight().double() - target.double()
        total.add_(
            nn.functional.conv2d(
                x, difference, None, layer.stride, layer.padding, layer.dilation, layer.groups
            )
            .square()
            .sum((0, 2, 3))
        )

    hook = layer.register_forward_pre_hook(add)
    for bits in net.bits:
        with net.at_bits(bits):
            net(images)
    hook.remove()
    return total


@pytest.mark.parametrize("kind", NETS)
@pytest.mark.parametrize("model", [TinyNet, Grouped])
def test_no_channel_is_worse_and_the_layer_knows(kind: str, model: Any, images: Tensor) -> None:
    torch.manual_seed(0)
    net = made(NETS[kind], model(), images)
    first = next(
        f"branches.0.{name}"
        for name, module in net.branches[0].named_modules()
        if isinstance(module, CodeLayer)
    )
    layer = net.get_submodule(first)
    target, codes = unrounded(layer).detach(), layer.quant_weight().detach()
    before = error_of(net, first, images, target)
    found = descend_codes(net, [images])
    after = error_of(net, first, images, target)
    assert bool((after <= before * (1 + 1e-9)).all()) and after.sum() <= before.sum()
    assert found[first].after / found[first].before == pytest.approx(
        float(after.sum() / before.sum()),
        rel=1e-4,  # inputs in fp32 there
    )
    changed = (layer.quant_weight() != codes).float().mean().item()
    assert found[first].changed == changed
    assert all(one.after <= one.before for one in found.values())
    # of one bit, the tiny network's activations are nearly all 0: there is nothing to gain
    if (kind, model) != ("binary", TinyNet):
        assert any(one.after < one.before for one in found.values())
    assert set(layer.quant_weight().unique().tolist()) <= set(layer.weight_format.integers)
    again = descend_codes(net, [images])
    # targets of codes that were moved are their codes: nothing is left to gain there
    assert all(one.after <= one.before for one in again.values())
    reestimate_norms(net, [images], batches=1)
    with torch.no_grad():
        assert net(images).isfinite().all()


def test_other_weights_are_refused(images: Tensor) -> None:
    net = made({"bits": [2, 4], "method": "adabits"}, TinyNet(), images)
    with pytest.raises(ConfigError, match="conv1: expected weights that are the same integers"):
        descend_codes(net, [images])
