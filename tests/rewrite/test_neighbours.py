"""Between which quantized layers a norm stands: the rule, case by case."""

import torch
from torch import Tensor, fx, nn

from brevitas_multiquant.rewrite.neighbours import Between, sites_around


def found_in(model: nn.Module) -> dict[str, Between]:
    """Of the norms of a model whose convolutions are quantized, each with a site of its own."""
    traced = fx.symbolic_trace(model)
    names = [name for name, module in traced.named_modules() if isinstance(module, nn.Conv2d)]
    found = sites_around(traced.graph, {name: f"at {name}" for name in names})
    norms = (name for name, module in traced.named_modules() if isinstance(module, nn.BatchNorm2d))
    return {name: found[name] for name in norms}


def at(own: str, following: str) -> Between:
    return Between(f"at {own}", f"at {following}")


def conv() -> nn.Module:
    return nn.Conv2d(4, 4, 3, padding=1)


class Block(nn.Module):
    """Residual, with a convolution and a norm in the shortcut, or without."""

    def __init__(self, down: bool) -> None:
        super().__init__()
        self.conv1, self.bn1, self.conv2, self.bn2 = conv(), norm(), conv(), norm()
        self.down = nn.Sequential(conv(), norm()) if down else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(y)) + self.down(x))


class PreActivation(nn.Module):
    """Norms in front of their layers; the first reads a sum."""

    def __init__(self) -> None:
        super().__init__()
        self.bn1, self.conv1, self.bn2, self.conv2 = norm(), conv(), norm(), conv()

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(torch.relu(self.bn1(x)))
        return x + self.conv2(torch.relu(self.bn2(y)))


class Forked(nn.Module):
    """A norm with two readers, of which the one that was written first runs last."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn, self.late, self.early = conv(), norm(), conv(), conv()

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn(self.conv(x))
        early = self.early(y)
        return torch.cat([early, self.late(y)], 1)


class Twice(nn.Module):
    """One norm for two places."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2, self.bn = conv(), conv(), norm()

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv2(self.bn(self.conv1(x))))


def norm() -> nn.Module:
    return nn.BatchNorm2d(4)


def test_residual_blocks():
    """Behind a block the next one's first layer follows, through the addition."""
    assert found_in(nn.Sequential(Block(True), Block(False))) == {
        "0.bn1": at("0.conv1", "0.conv2"),
        "0.bn2": at("0.conv2", "1.conv1"),
        "0.down.1": at("0.down.0", "1.conv1"),
        "1.bn1": at("1.conv1", "1.conv2"),
        "1.bn2": at("1.conv2", "1.conv2"),  # nothing is behind it: it counts as its own
    }


def test_norms_in_front_of_their_layers():
    """Of a sum's operands the one that runs last is in front."""
    assert found_in(nn.Sequential(PreActivation(), PreActivation())) == {
        "0.bn1": at("0.conv1", "0.conv1"),  # nothing is in front of it
        "0.bn2": at("0.conv1", "0.conv2"),
        "1.bn1": at("0.conv2", "1.conv1"),
        "1.bn2": at("1.conv1", "1.conv2"),
    }


def test_of_several_readers_the_first_to_run():
    assert found_in(Forked()) == {"bn": at("conv", "early")}


def test_a_norm_of_two_places_stands_at_the_first():
    assert found_in(Twice()) == {"bn": at("conv1", "conv2")}


def test_a_norm_without_layers_stands_nowhere():
    assert found_in(nn.Sequential(norm(), nn.ReLU())) == {"0": Between(None, None)}
