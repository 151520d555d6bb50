"""Packed files of real networks: whatever their constructors do, they load equal to the bit."""

from pathlib import Path

import pytest
import torch

from brevitas_multiquant import ModelSource, calibrate, load_packed, multiquantize, save_packed

NAMES = [
    ("timm", "test_convnext"),
    ("timm", "test_efficientnet"),
    ("timm", "test_nfnet"),  # standardised weights with gains
    ("timm", "test_byobnet"),
    ("timm", "resnetblur18"),  # a filter that is in no state dict
    ("timm", "resnet18d"),
    ("timm", "regnetx_002"),
    ("timm", "mobilenetv4_conv_small_035"),
    ("timm", "repghostnet_050"),
    ("timm", "densenet121"),
    ("timm", "tf_mobilenetv3_small_minimal_100"),  # padding as TensorFlow does
    ("torchvision", "googlenet"),  # auxiliary classifiers that no bit-width runs
    ("torchvision", "shufflenet_v2_x0_5"),
    ("torchvision", "squeezenet1_1"),
    ("torchvision", "mnasnet0_5"),
    ("torchvision", "efficientnet_b0"),
    ("torchvision", "regnet_y_400mf"),
]


@pytest.mark.parametrize(("library", "name"), NAMES)
def test_loads_equal(library: str, name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    source = ModelSource(library, name)
    net = multiquantize(
        source.build(), [2, 4], input_shape=(1, 3, 96, 96), source=source, check=False
    )
    calibrate(net, [torch.rand(2, 3, 96, 96)])
    images = torch.rand(2, 3, 96, 96)
    loaded = load_packed(save_packed(net, tmp_path / "net.safetensors"))
    for bits in net.bits:
        with torch.no_grad(), net.eval().at_bits(bits), loaded.at_bits(bits):
            assert torch.equal(loaded(images), net(images))
