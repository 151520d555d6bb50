"""Half branches of real networks in the ``finn`` profile: every form agrees to the bit."""

import pytest
import timm
import torch

import brevitas_multiquant.core.cifar_networks  # noqa: F401  (registers the CIFAR networks)
from brevitas_multiquant import (
    InPlaceDistillation,
    calibrate,
    cost,
    extract_subnet,
    load_packed,
    multiquantize,
    save_packed,
)
from brevitas_multiquant.export import check_finn
from brevitas_multiquant.export.finn.check import branch_names
from brevitas_multiquant.export.finn.lower import lower

SIZES = {
    "cifar_resnet8": 16,
    "cifar_resnet20": 16,
    "cifar_vgg11_bn": 32,
    "cifar_mobilenetv1": 32,
    "resnet18": 32,
}


def network(name, bits):
    torch.manual_seed(0)
    size = SIZES[name]
    net = multiquantize(
        timm.create_model(name, num_classes=10),
        bits,
        profile="finn",
        branch_init="shuffle",
        input_shape=(1, 3, size, size),
    )
    images = torch.randn(4, 3, size, size)
    calibrate(net, [images])
    return net, images


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("bits", [[2, 3, 4], [3], [2, 3, 4, 6, 8], [5, 8]])
def test_all_forms_agree(name, bits, tmp_path):
    net, images = network(name, bits)
    loaded = load_packed(save_packed(net, tmp_path / "net.safetensors"))
    assert list(cost(net)) == bits
    assert check_finn(net) == []
    net.eval()
    for bit in bits:
        subnet = extract_subnet(net, bit)
        graph = lower(subnet, branch_names(net, bit), net.input_shape)
        with torch.no_grad(), net.at_bits(bit), loaded.at_bits(bit):
            expected = net(images)
            assert torch.equal(subnet(images), expected), bit
            assert torch.equal(loaded(images), expected), bit
            assert torch.equal(graph.logits(images[:1]), expected[:1]), bit


@pytest.mark.parametrize("name", SIZES)
def test_it_trains(name):
    net, images = network(name, [2, 3, 4])
    net.train()
    InPlaceDistillation(net)(images, torch.arange(len(images)))["loss"].backward()
    for parameter_name, parameter in net.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert torch.isfinite(parameter.grad).all(), parameter_name
