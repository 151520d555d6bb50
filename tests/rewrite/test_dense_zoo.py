"""Networks of timm and torchvision for maps, boxes, regions, videos and features: one of each kind.

All of them are in `integration_tests.test_dense_zoo`.
"""

import re

import pytest
import torch

from integration_tests.dense_models import dense_models
from integration_tests.dense_zoo import examine

QUICK = {
    "tv:lraspp_mobilenet_v3_large": 1,
    "tv:fcn_resnet50": 1,
    "tv:ssdlite320_mobilenet_v3_large": 2,
    "tv:fasterrcnn_mobilenet_v3_large_320_fpn": 9,  # maps of 3 sizes, and of each two of regions
    "tv:maskrcnn_resnet50_fpn mask head": 1,
    "tv:keypointrcnn_resnet50_fpn keypoint head": 1,
    "tv:mc3_18": 1,
    "timm:test_resnet features": 5,
    "timm:test_efficientnet pooled": 1,
}
REFUSED = {
    "tv:raft_small": "one argument without a default .* got image1, image2",
    "tv:swin3d_t": "multiplies matrices",
    "timm:xception41p features": "feature_cls='getter'",
}


@pytest.mark.parametrize("name", QUICK)
def test_converts_and_is_stored(name):
    """The conversion's self-check, the plain network and the packed file are equal to the bit."""
    torch.manual_seed(0)
    line = examine(dense_models()[name], [2])
    assert (line.result, line.self_check, line.packed) == ("converted", "equal", "equal")
    assert line.outputs == QUICK[name]
    assert line.quantized >= 0.8 * line.layers > 0


@pytest.mark.parametrize("name", REFUSED)
def test_is_refused_by_name(name):
    line = examine(dense_models()[name], [2])
    assert line.as_expected() and line.result == "refused"
    assert re.search(REFUSED[name], line.reason)
