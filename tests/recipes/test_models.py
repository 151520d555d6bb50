"""The registered CIFAR networks: shapes, sizes, timm's conventions."""

import pytest
import timm
import torch
from torch import nn

import brevitas_multiquant.core.cifar_networks  # noqa: F401  (registers the networks)
from brevitas_multiquant import InPlaceDistillation, calibrate, multiquantize
from brevitas_multiquant.quant.layers import CodeLayer

NAMES = ["cifar_resnet8", "cifar_resnet20", "cifar_vgg11_bn", "cifar_mobilenetv1"]
NAMES += ["cifar_mobilenetv1_025"]


@pytest.mark.parametrize("name", NAMES)
def test_registered_and_traceable(name):
    model = timm.create_model(name, num_classes=7, in_chans=1, drop_rate=0.1).eval()
    images = torch.randn(2, 1, 32, 32)
    logits = model(images)
    assert logits.shape == (2, 7)
    assert torch.equal(torch.fx.symbolic_trace(model)(images), logits)
    assert torch.equal(model.forward_head(model.forward_features(images)), logits)


@pytest.mark.parametrize("name", NAMES)
def test_follows_timm_conventions(name):
    model = timm.create_model(name, num_classes=7)
    cfg = model.pretrained_cfg
    assert cfg["input_size"] == (3, 32, 32)
    assert model.get_classifier() is model.get_submodule(cfg["classifier"])
    assert isinstance(model.get_submodule(cfg["first_conv"]), nn.Conv2d)
    model.reset_classifier(3)
    assert model(torch.randn(2, 3, 32, 32)).shape == (2, 3)
    model.reset_classifier(0)
    assert model(torch.randn(2, 3, 32, 32)).shape == (2, model.num_features)
    with pytest.raises(ValueError, match="global_pool"):
        model.reset_classifier(3, "max")


@pytest.mark.parametrize(
    ("name", "features"),
    [
        ("cifar_resnet8", (64, 8, 8)),
        ("cifar_resnet20", (64, 8, 8)),
        ("cifar_vgg11_bn", (512, 1, 1)),
        ("cifar_mobilenetv1", (1024, 2, 2)),
        ("cifar_mobilenetv1_025", (256, 2, 2)),
    ],
)
def test_feature_shapes(name, features):
    model = timm.create_model(name)
    assert model.forward_features(torch.randn(1, 3, 32, 32)).shape == (1, *features)


@pytest.mark.parametrize(
    ("name", "convolutions", "linears"),
    [
        ("cifar_resnet8", 1 + 6 + 2, 1),
        ("cifar_resnet20", 1 + 18 + 2, 1),
        ("cifar_vgg11_bn", 8, 3),
        ("cifar_mobilenetv1", 1 + 26, 1),
    ],
)
def test_depth(name, convolutions, linears):
    modules = list(timm.create_model(name).modules())
    assert sum(isinstance(module, nn.Conv2d) for module in modules) == convolutions
    assert sum(isinstance(module, nn.Linear) for module in modules) == linears


@pytest.mark.parametrize(
    ("name", "layers"),
    [
        ("cifar_resnet20", 18 + 2),
        ("cifar_vgg11_bn", 7 + 2),
        ("cifar_mobilenetv1", 26),
    ],
)
def test_becomes_a_network_for_every_bit_width(name, layers):
    """``layers`` of 2 bits per branch: all but the first convolution and the last linear layer."""
    images, labels = torch.randn(4, 3, 32, 32), torch.arange(4)
    net = multiquantize(timm.create_model(name, num_classes=7), [2, 4])
    calibrate(net, [images])
    assert sum(isinstance(module, CodeLayer) for module in net.modules()) == 2 * layers
    out = InPlaceDistillation(net).step(images, labels)
    assert {bits: logits.shape for bits, logits in out["outputs"].items()} == {
        2: (4, 7),
        4: (4, 7),
    }
    assert out["loss"].isfinite()
    assert [n for n, p in net.named_parameters() if p.grad is None] == []
    assert all(p.grad.isfinite().all() for p in net.parameters())


def test_resnet20_has_the_paper_s_storage():
    """0.361 MB at 2, 4, 6, 8 bits and 100 classes, by the storage rule counted on its own here."""
    model = timm.create_model("cifar_resnet20", num_classes=100)
    body = [m for n, m in model.named_modules() if isinstance(m, nn.Conv2d) and n != "conv1"]
    norms = [m for n, m in model.named_modules() if isinstance(m, nn.BatchNorm2d) and n != "bn1"]
    branches, passes = 4, 1 + 2 + 3 + 4
    weights = sum(conv.weight.numel() for conv in body) * 2 / 8 * branches
    switchable = sum(norm.num_features for norm in norms) * 2 * 4 * passes
    ranges = len(body) * 2 * 4 * (branches + passes)
    shared = 4 * (model.conv1.weight.numel() + 2 * 16 + 64 * 100 + 100)
    assert (weights + switchable + ranges + shared) / 1e6 == pytest.approx(0.361, abs=5e-4)
