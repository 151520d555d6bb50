"""One model of each kind in both libraries: converted, trained a step at two bit-widths.

The self-check is on: the conversion itself compares each model with its branch to the bit, in
evaluation and in training mode. Here: what is built runs forward and backward.
"""

import pytest
import torch
from torch import nn

from brevitas_multiquant import MultiQuantNet, multiquantize
from brevitas_multiquant.quant.layers import CodeLayer
from brevitas_multiquant.rewrite.graph.kinds import LAYERS
from integration_tests.models import build, small_shape, zoo
from tests.idle import idle_parameters

SIZE = 64
NARROWER = {"timm:vgg11": {"mlp_ratio": 1 / 64}}  # 120 million weights behind its features
NO_HALF_BRANCH = {"timm:focalnet_tiny_srf"}  # splits channels and gates by number


def check_plan(net: MultiQuantNet, model: nn.Module) -> None:
    """Every convolution and linear layer is accounted for, once, and is what the plan says."""
    layers = [name for name, module in model.named_modules() if isinstance(module, LAYERS)]
    rows = {row.name: row for row in net.plan.layers if not row.kind.endswith("()")}
    assert len(rows) == len(layers) and set(rows) == set(layers)
    parts = {"stem": net.stem, "branch": net.branches[0], "head": net.head}
    for name, row in rows.items():
        if row.part != "-":
            module = parts[row.part].get_submodule(name)
            assert isinstance(module, CodeLayer) is (row.treatment == "2-bit weights")
    built = {n for p in parts.values() for n, m in p.named_modules() if isinstance(m, LAYERS)}
    assert built == {name for name, row in rows.items() if row.part != "-"}


@pytest.mark.parametrize("name", zoo().representatives)
def test_converts_and_trains(name: str) -> None:
    torch.manual_seed(0)
    model = build(name, **NARROWER.get(name, {}))
    shape = small_shape(model, SIZE)
    bits = [2, 4] if name in NO_HALF_BRANCH else [2, 3]
    net = multiquantize(model, bits, input_shape=shape).train()
    layers = [row for row in net.plan.layers if row.part == "branch"]
    assert layers and all(
        row.treatment == "2-bit weights" for row in layers if "()" not in row.kind
    )
    del model
    images = torch.randn(2, *shape[1:])
    outputs = {}
    for bits in net.bits:
        net.zero_grad()
        with net.at_bits(bits):
            outputs[bits] = net(images)
        torch.nn.functional.cross_entropy(outputs[bits], torch.arange(2)).backward()
        assert torch.isfinite(outputs[bits]).all()
        idle = idle_parameters(net, bits)
        for label, parameter in net.named_parameters():
            if id(parameter) not in idle and parameter.requires_grad:
                assert parameter.grad is not None, f"{label} got no gradient at {bits} bits"
                assert torch.isfinite(parameter.grad).all(), label
    assert not torch.equal(*outputs.values())
