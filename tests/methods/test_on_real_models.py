"""Methods of one body on the layers of real networks; on all kinds: integration_tests."""

import pytest
import torch

from integration_tests.methods import ONE_BODY, check
from tests.zoo import SHAPE, ZOO

PAIRS = [
    ("individual", "torchvision convnext"),  # linear layers, a norm over channels
    ("adabits", "timm resnetv2"),  # standardised weights
    ("adabits as published", "timm mobilenetv3"),  # depthwise convolutions, gates
    ("any_precision", "timm regnet"),  # grouped convolutions, shortcuts
    ("double_rounding", "torchvision convnext"),
    ("double_rounding", "timm resnetv2"),
    ("bit_mixer", "timm resnetv2"),  # norms in front of layers
    ("bit_mixer", "timm mobilenetv3"),
]


@pytest.mark.parametrize(("method", "name"), PAIRS)
def test_converts_runs_and_trains(method: str, name: str) -> None:
    torch.manual_seed(0)
    check(ZOO[name](), SHAPE, ONE_BODY[method])
