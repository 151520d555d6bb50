"""Channels of no bits: gone from a plain network where its graph allows it, and still the same."""

from typing import Any

import onnx
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from brevitas_multiquant import Assignment, calibrate, extract_subnet, multiquantize
from brevitas_multiquant.allocation.pruned import PrunedChannels
from brevitas_multiquant.export.qonnx.files import export_qonnx
from brevitas_multiquant.methods.settle import settle
from tests.tiny import IMAGE, TinyNet

PRUNED = [0, 3, 0, 4, 2, 3]


class Chain(nn.Module):
    """Three convolutions in a row, as functions and modules, one of them depthwise."""

    def __init__(self, act: type[nn.Module] = nn.ReLU, depthwise: bool = False) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.conv1 = nn.Conv2d(6, 6, 3, padding=1, bias=not depthwise)
        self.bn1 = nn.BatchNorm2d(6)
        self.act = act()
        self.conv2 = nn.Conv2d(6, 6, 3, padding=1, groups=6 if depthwise else 1, bias=False)
        self.bn2 = nn.BatchNorm2d(6)
        self.conv3 = nn.Conv2d(6, 4, 1)
        self.fc = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        x = F.max_pool2d(self.act(self.bn1(self.conv1(x))), 1)
        x = torch.relu(self.bn2(self.conv2(x)))
        return self.fc(self.conv3(x).mean((2, 3)))


def pruned(model: nn.Module, images: Tensor, channels: dict[str, list[int]]) -> Any:
    net = multiquantize(model, [8], method="individual", input_shape=IMAGE).train()
    calibrate(net, [images])
    for _ in range(3):
        net(images)  # statistics of norms
    sites = {site: (max(max(channels.get(site, [4])), 1), 4) for site in net.sites}
    settle(net, Assignment(8, sites), channels)
    PrunedChannels(net, channels).hold()
    return net.eval()


def shapes(subnet: nn.Module, name: str) -> tuple[int, ...]:
    return tuple(subnet.branches[0].get_submodule(name)[0].weight.shape)


@pytest.fixture(autouse=True)
def _no_grad() -> Any:
    with torch.no_grad():
        yield


def test_channels_are_gone_from_their_layer_and_its_readers(images: Tensor) -> None:
    class Plain(Chain):
        def forward(self, x: Tensor) -> Tensor:
            x = self.act(self.bn1(self.conv1(F.relu(self.stem(x)))))
            x = torch.relu(self.bn2(self.conv2(x)))
            return self.fc(self.conv3(x).mean((2, 3)))

    net = pruned(Plain(), images, {"conv1": PRUNED, "conv2": [2, 2, 0, 0, 0, 1]})
    subnet = extract_subnet(net, 8)
    assert shapes(subnet, "conv1") == (4, 6, 3, 3)
    assert shapes(subnet, "conv2") == (3, 4, 3, 3)
    assert shapes(subnet, "conv3") == (4, 3, 1, 1)
    assert torch.equal(subnet(images), net(images))
    assert net.branches[0].get_submodule("conv1").weight.shape == (6, 6, 3, 3)  # not changed


def test_a_constant_that_is_no_code_0_stays(images: Tensor) -> None:
    """A sigmoid of 0 is 1/2: what reads it is not the same without."""

    class Sigmoid(Chain):
        def forward(self, x: Tensor) -> Tensor:
            x = torch.sigmoid(self.bn1(self.conv1(F.relu(self.stem(x)))))
            return self.fc(self.conv3(torch.relu(self.bn2(self.conv2(x)))).mean((2, 3)))

    net = pruned(Sigmoid(), images, {"conv1": PRUNED})
    subnet = extract_subnet(net, 8)
    assert shapes(subnet, "conv1") == (6, 6, 3, 3)
    assert not subnet.branches[0].get_submodule("conv1")[0].weight[[0, 2]].any()
    assert torch.equal(subnet(images), net(images))


@pytest.mark.parametrize("model", [Chain(), Chain(depthwise=True), TinyNet()])
def test_where_the_graph_does_not_allow_it_they_stay_as_zeros(
    images: Tensor, model: nn.Module
) -> None:
    """Behind a pooling that is a function, a depthwise layer, an addition."""
    net = pruned(model, images, {"conv1": PRUNED, "conv2": [0, 1, 2, 3, 4, 0]})
    subnet = extract_subnet(net, 8)
    assert shapes(subnet, "conv2")[0] in (4, 6)
    assert torch.equal(subnet(images), net(images))


def test_an_addition_keeps_its_operands_whole(images: Tensor) -> None:
    net = pruned(TinyNet(), images, {"conv1": PRUNED, "conv2": [0, 1, 2, 3, 4, 0]})
    subnet = extract_subnet(net, 8)
    assert shapes(subnet, "conv1") == (4, 4, 3, 3)
    assert shapes(subnet, "conv2") == (6, 4, 3, 3)  # its outputs are added to the shortcut's


def test_no_channel_is_lost_that_has_bits(images: Tensor) -> None:
    """Only those of no bits, also where weights of others happen to be 0."""
    net = pruned(TinyNet(), images, {"conv1": [2, 2, 2, 2, 2, 2]})
    assert shapes(extract_subnet(net, 8), "conv1") == (6, 4, 3, 3)


def test_the_exported_file_has_them_no_more(images: Tensor, tmp_path: Any) -> None:
    net = pruned(TinyNet(), images, {"conv1": PRUNED})
    with torch.enable_grad():
        files = export_qonnx(net, tmp_path, input_shape=IMAGE)  # verified against the network
    weights = {tuple(one.dims) for one in onnx.load(files[8]).graph.initializer}
    assert (4, 4, 3, 3) in weights and (6, 4, 3, 3) in weights and (6, 6, 3, 3) not in weights


def test_held_while_the_network_trains_on(images: Tensor) -> None:
    net = pruned(TinyNet(), images, {"conv1": PRUNED}).train()
    held = PrunedChannels(net, {"conv1": PRUNED})
    optimizer = torch.optim.SGD(net.model_parameters(), 0.1, 0.9)
    for _ in range(3):
        with torch.enable_grad():
            optimizer.zero_grad()
            F.cross_entropy(net(images), torch.arange(4)).backward()
        optimizer.step()
        held.hold()
    norm = net.branches[0].get_submodule("bn1")["8"]
    assert not norm.bias[[0, 2]].any() and norm.bias[[1, 3, 4, 5]].all()
    subnet = extract_subnet(net.eval(), 8)
    assert shapes(subnet, "conv1") == (4, 4, 3, 3)
    assert torch.equal(subnet(images), net(images))
