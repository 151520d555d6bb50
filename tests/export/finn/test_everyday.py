"""Everyday operations map, to the bit, with norm scales of both signs."""

import pytest
import torch
from torch import nn

from brevitas_multiquant import calibrate, extract_subnet, multiquantize
from brevitas_multiquant.export import check_finn, export_finn
from brevitas_multiquant.export.finn.check import branch_names
from brevitas_multiquant.export.finn.hardware import hardware_layers
from brevitas_multiquant.export.finn.lower import lower
from tests.export.finn.everyday import BODIES

SHAPE = (1, 3, 8, 8)


def network_of(model, bits=(2, 4)):
    torch.manual_seed(0)
    net = multiquantize(model, bits, profile="finn", branch_init="shuffle", input_shape=SHAPE)
    with torch.no_grad():
        for norm in net.modules():
            if isinstance(norm, (nn.BatchNorm2d, nn.BatchNorm1d)):
                norm.weight.normal_(1.0, 0.7)
                norm.bias.normal_(0.0, 0.3)
                norm.weight[:1] = -norm.weight[:1].abs()
    calibrate(net, [torch.randn(8, *SHAPE[1:])])
    return net.eval()


def assert_equal(net, bits):
    images = torch.randn(8, *SHAPE[1:])
    subnet = extract_subnet(net, bits)
    graph = lower(subnet, branch_names(net, bits), SHAPE)
    with torch.no_grad():
        logits = subnet(images)
        assert torch.equal(graph.logits(images), logits)
    assert logits.unique().numel() > 5
    assert hardware_layers(graph)
    return graph


@pytest.mark.parametrize("name", BODIES)
def test_integers_give_torchs_logits(name):
    torch.manual_seed(0)
    net = network_of(BODIES[name]())
    assert check_finn(net) == []
    for bits in net.bits:
        assert_equal(net, bits)


@pytest.mark.parametrize("name", ["concatenation", "squeeze and excitation", "upsampling", "silu"])
def test_half_branches(name):
    torch.manual_seed(0)
    assert_equal(network_of(BODIES[name](), (2, 3)), 3)


@pytest.mark.parametrize("name", ["channel shuffle", "upsampling", "gates of vectors", "silu"])
def test_the_exported_model_gives_them_too(name, tmp_path):
    torch.manual_seed(0)
    net = network_of(BODIES[name]())
    projects = export_finn(net, tmp_path, [4], images=torch.randn(2, *SHAPE[1:]), estimate=False)
    assert (projects[4] / "model.onnx").exists()
