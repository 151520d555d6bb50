"""Real models, one of each family in both libraries, small enough for every test run.

Where a family has no small member: the library's own class with fewer blocks. Made for 64x64
images.
"""

from functools import partial

import timm
import torch
import torchvision
from timm.layers import GroupNormAct, StdConv2d
from timm.models.densenet import DenseNet as TimmDenseNet
from timm.models.resnet import Bottleneck as TimmBottleneck
from timm.models.resnet import ResNet as TimmResNet
from timm.models.resnetv2 import ResNetV2
from torchvision.models import convnext, densenet, resnet, vgg

import brevitas_multiquant.core.cifar_networks  # noqa: F401  (registers the CIFAR networks)

SHAPE = (1, 3, 64, 64)


def torchvision_vgg():
    """VGG-11 with the classifier that people put on small images."""
    model = vgg.VGG(vgg.make_layers([16, "M", 32, "M", 32, 32, "M"], batch_norm=False))
    model.avgpool = torch.nn.AdaptiveAvgPool2d(2)
    model.classifier = torch.nn.Sequential(
        torch.nn.Linear(32 * 4, 24),
        torch.nn.ReLU(True),
        torch.nn.Dropout(),
        torch.nn.Linear(24, 10),
    )
    return model


def torchvision_convnext():
    blocks = [convnext.CNBlockConfig(16, 32, 1), convnext.CNBlockConfig(32, None, 2)]
    return convnext.ConvNeXt(blocks, stochastic_depth_prob=0.2, num_classes=10)


of_timm = partial(partial, timm.create_model, num_classes=10)
of_torchvision = partial(partial, torchvision.models.get_model, num_classes=10)
ZOO = {
    "timm resnet": of_timm("test_resnet"),
    "timm resnetv2": partial(
        ResNetV2,
        (1, 1, 1, 1),
        channels=(32, 32, 64, 64),
        num_classes=10,
        preact=True,
        stem_type="same",
        conv_layer=StdConv2d,
        norm_layer=partial(GroupNormAct, num_groups=8),
    ),
    "timm resnetv2 with batch norm": of_timm("resnetv2_18"),
    "timm resnext": partial(
        TimmResNet, TimmBottleneck, (1, 1, 1, 1), cardinality=8, base_width=4, num_classes=10
    ),
    "timm regnet": of_timm("regnetx_002"),
    "timm vgg": of_timm("vgg11_bn", mlp_ratio=1 / 64),
    "timm densenet": partial(
        TimmDenseNet, growth_rate=8, block_config=(2, 2, 2), num_classes=10, drop_rate=0.1
    ),
    "timm mobilenetv1": of_timm("mobilenetv1_100"),
    "timm mobilenetv2": of_timm("mobilenetv2_035"),
    "timm mobilenetv3": of_timm("mobilenetv3_small_050", drop_path_rate=0.1),
    "timm mobilenetv4": of_timm("mobilenetv4_conv_small_035"),
    "timm efficientnet": of_timm("test_efficientnet", drop_path_rate=0.1),
    "timm convnext": of_timm("test_convnext"),
    "torchvision resnet": of_torchvision("resnet18"),
    "torchvision resnext": partial(
        resnet.ResNet,
        resnet.Bottleneck,
        [1, 1, 1, 1],
        groups=8,
        width_per_group=4,
        num_classes=10,
    ),
    "torchvision regnet": of_torchvision("regnet_y_400mf"),
    "torchvision vgg": torchvision_vgg,
    "torchvision densenet": partial(
        densenet.DenseNet, 8, (2, 2, 2), num_init_features=16, num_classes=10, drop_rate=0.1
    ),
    "torchvision mobilenetv2": of_torchvision("mobilenet_v2"),
    "torchvision mobilenetv3": of_torchvision("mobilenet_v3_small"),
    "torchvision efficientnet": of_torchvision("efficientnet_b0"),
    "torchvision convnext": torchvision_convnext,
}
