"""``torch.compile`` with inductor gives the outputs of the network it compiles, on six families.

Takes minutes: ``python -m pytest integration_tests/test_compile.py``.
"""

import pytest
import torch

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
