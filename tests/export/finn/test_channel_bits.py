"""Bits of single channels in hardware: integers of the finest type, pruned channels not there."""

import pytest
import torch
from torch import Tensor

from brevitas_multiquant import Assignment, calibrate, extract_subnet, multiquantize
from brevitas_multiquant.allocation.pruned import PrunedChannels
from brevitas_multiquant.export import check_finn
from brevitas_multiquant.export.finn.check import branch_names
from brevitas_multiquant.export.finn.integer_graph import Convolution, IntegerGraph
from brevitas_multiquant.export.finn.lower import lower
from brevitas_multiquant.methods.settle import settle
from tests.tiny import IMAGE, TinyNet

CHANNELS = {
    "conv1": [0, 3, 0, 4, 2, 3],
    "conv2": [1, 2, 3, 4, 5, 4],
    "shortcut": [3, 3, 2, 2, 1, 4],
}


@pytest.fixture
def net(images: Tensor):
    net = multiquantize(
        TinyNet(), [8], method="individual", profile="finn", input_shape=IMAGE
    ).train()
    calibrate(net, [images])
    for _ in range(3):
        net(images)  # statistics of norms
    settle(net, Assignment(8, {"conv1": (4, 4), "conv2": (5, 3)}), CHANNELS)
    PrunedChannels(net, CHANNELS).hold()
    return net.eval()


@torch.no_grad()
def test_integers_are_those_of_the_network(net, images: Tensor) -> None:
    assert not check_finn(net)
    graph = lower(extract_subnet(net, 8), branch_names(net, 8), IMAGE)
    assert isinstance(graph, IntegerGraph)
    assert torch.equal(graph.logits(images), net(images))
    weights = [tuple(one.weight.shape) for one in graph.layers if isinstance(one, Convolution)]
    assert (4, 4, 3, 3) in weights and (6, 4, 3, 3) in weights  # two channels fewer in between
