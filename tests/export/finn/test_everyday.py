"""Everyday operations map, to the bit, with norm scales of both signs."""

import pytest
import torch
from torch import nn

from benchmarks.edge_networks import EDGE
from benchmarks.finn_edge import brought_over, largest_difference
from brevitas_multiquant import MultiQuantConfig, calibrate, extract_subnet, multiquantize
from brevitas_multiquant.errors import ConfigError, UnsupportedModelError
from brevitas_multiquant.export import check_finn, export_finn
from brevitas_multiquant.export.finn.check import branch_names
from brevitas_multiquant.export.finn.hardware import hardware_layers
from brevitas_multiquant.export.finn.lower import lower
from tests.dense import segmentation
from tests.export.finn.everyday import BODIES, Line, perceptron

SHAPE = (1, 3, 8, 8)


def network_of(model, bits=(2, 4), shape=SHAPE):
    torch.manual_seed(0)
    net = multiquantize(model, bits, profile="finn", branch_init="shuffle", input_shape=shape)
    with torch.no_grad():
        for norm in net.modules():
            if isinstance(norm, (nn.BatchNorm2d, nn.BatchNorm1d)):
                norm.weight.normal_(1.0, 0.7)
                norm.bias.normal_(0.0, 0.3)
                norm.weight[:1] = -norm.weight[:1].abs()
    calibrate(net, [torch.randn(8, *shape[1:])])
    return net.eval()


def assert_equal(net, bits):
    shape = net.input_shape
    images = torch.randn(8, *shape[1:])
    subnet = extract_subnet(net, bits)
    graph = lower(subnet, branch_names(net, bits), shape)
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


def test_a_u_net_maps():
    """Skips by concatenation, nearest upsampling: logits of every pixel, with difference 0."""
    torch.manual_seed(0)
    net = network_of(segmentation.UNet(), (2, 4), segmentation.SHAPE)
    assert check_finn(net) == []
    for bits in net.bits:
        graph = assert_equal(net, bits)
        assert graph.logits(torch.randn(1, *segmentation.SHAPE[1:])).shape == (1, 5, 32, 32)


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


def test_a_network_of_linear_layers_alone():
    """In this profile; in the paper's it is none of convolutions."""
    torch.manual_seed(0)
    net = network_of(perceptron())
    assert check_finn(net) == []
    for bits in net.bits:
        assert_equal(net, bits)
    with pytest.raises(UnsupportedModelError, match="at least one convolution"):
        multiquantize(perceptron(), input_shape=SHAPE)


def test_convolutions_along_a_line():
    torch.manual_seed(0)
    net = network_of(Line(), shape=(1, 3, 1, 32))
    assert check_finn(net) == []
    for bits in net.bits:
        assert_equal(net, bits)


@pytest.mark.parametrize("shape", [(1, 16), (1, 2, 256)])
def test_vectors_and_signals_are_told_how_to_be_images(shape):
    with pytest.raises(ConfigError, match="in front, and take images"):
        multiquantize(Line(), input_shape=shape)


def test_files_of_before_keep_their_rules():
    """The quantizers of products are not in them."""
    config = MultiQuantConfig(bits=(2,), profile="finn", revision=1)
    assert MultiQuantConfig.from_dict(config.to_dict()) == config
    assert "revision" not in config.to_dict()
    model = BODIES["squeeze and excitation"]()
    older = multiquantize(model, config=config, input_shape=SHAPE)
    newer = multiquantize(model, [2], profile="finn", input_shape=SHAPE)
    more = newer.state_dict().keys() - older.state_dict().keys()
    assert more and all(name.startswith("branches.0.products.mul.") for name in more)
    assert newer.config.to_dict()["revision"] == 2


ROWS = [EDGE[place] for place in (1, 7, 14, 34, 41, 48, 54, 60)]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_some_networks_of_the_edge_list(row):
    """All of them: ``python -m benchmarks.finn_edge``."""
    net, graphs, reason = brought_over(row)
    assert not reason and row.advice is None
    assert largest_difference(net, graphs) == 0


@pytest.mark.parametrize("row", [row for row in EDGE if row.advice], ids=lambda row: row.name)
def test_refused_networks_are_told_what_to_use_instead(row):
    assert row.advice in brought_over(row)[2]
