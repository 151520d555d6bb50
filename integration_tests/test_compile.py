"""``torch.compile`` with inductor gives the outputs of the network it compiles, on six families.

Takes minutes: ``python -m pytest integration_tests/test_compile.py``.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from brevitas_multiquant import calibrate, multiquantize
from tests.zoo import SHAPE, ZOO

FAMILIES = [
    "timm resnet",
    "timm efficientnet",
    "timm mobilenetv3",
    "timm convnext",
    "torchvision densenet",
    "torchvision vgg",
]


@pytest.mark.parametrize("family", FAMILIES)
def test_compiled_network_gives_the_same_outputs(family: str) -> None:
    """One graph, no breaks; recompiled by itself when the bit-width changes."""
    torch.manual_seed(0)
    torch._dynamo.reset()
    net = multiquantize(ZOO[family](), [2, 4], input_shape=SHAPE)
    images = torch.randn(2, *SHAPE[1:])
    calibrate(net, [images])
    compiled = torch.compile(net.eval(), fullgraph=True)
    with torch.no_grad():
        for bits in net.bits:
            with net.at_bits(bits):
                expected, got = net(images), compiled(images)
            # codes are exact in any order of summation; a float function fused with its neighbours
            # rounds differently, which moves the logits by some of its last bits
            torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


def test_all_fifteen_bit_widths_are_compiled_once_in_either_mode() -> None:
    """Thirty graphs, where torch keeps eight of one function."""
    torch._dynamo.reset()
    layers = (nn.Conv2d(3, 2, 1), nn.ReLU(), nn.Conv2d(2, 2, 1), nn.ReLU())
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 2))
    net = multiquantize(model, range(2, 17), input_shape=(1, 3, 8, 8))
    images = torch.randn(4, 3, 8, 8)
    calibrate(net, [images])
    graphs = []

    def counting(graph: torch.fx.GraphModule, _: list[torch.Tensor]) -> Callable[..., Any]:
        graphs.append(graph)
        return graph.forward

    twin = net.view()
    net.compile(backend=counting, fullgraph=True, dynamic=False)
    for _ in range(2):
        for training in (True, False):
            net.train(training), twin.train(training)
            for bits in net.bits:
                with torch.set_grad_enabled(training), net.at_bits(bits), twin.at_bits(bits):
                    assert torch.equal(net(images), twin(images)), (training, bits)
        assert len(graphs) == 2 * len(net.bits) == 30
