"""Modules that a forward makes, or puts together: ``nn.ReLU()(x)``, ``self.body[:2](x)``."""

import pytest
import torch
from torch import nn

from brevitas_multiquant import calibrate, extract_subnet, multiquantize
from brevitas_multiquant.errors import SelfCheckError, UnsupportedModelError
from tests.tiny import IMAGE


class Made(nn.Module):
    """Three layers and a classifier; what is between them is made in the forward."""

    def __init__(self, forward):
        super().__init__()
        self.features = nn.Sequential(
            *(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU()),
            *(nn.Conv2d(8, 8, 3, padding=1), nn.Dropout(0.1)),
        )
        self.classifier = nn.Conv2d(8, 2, 1)
        self.written = forward

    def forward(self, x):
        return self.written(self, x)


MADE = {
    "an activation": lambda m, x: m.classifier(nn.ReLU()(m.features(x))),
    "a resize": lambda m, x: m.classifier(nn.Upsample(scale_factor=2)(m.features(x))),
    "a pool behind the classifier": lambda m, x: nn.AdaptiveAvgPool2d(1)(
        m.classifier(m.features(x))
    ).flatten(1),
    "a softmax": lambda m, x: nn.Softmax(dim=1)(m.classifier(m.features(x))),
    "slices": lambda m, x: m.classifier(m.features[3:](m.features[:3](x))),
    "a sequence of the first children": lambda m, x: m.classifier(
        nn.Sequential(*list(m.features.children())[:4])(x)
    ),
}


@pytest.mark.parametrize("name", MADE)
def test_they_are_traced(name):
    net = multiquantize(Made(MADE[name]), [2, 3, 4], input_shape=IMAGE)
    assert not net.plan.untraced and not net.plan.notes
    images = torch.randn(2, *IMAGE[1:])
    calibrate(net, [images])
    with torch.no_grad():
        for bits in net.bits:
            with net.eval().at_bits(bits):
                assert torch.equal(extract_subnet(net, bits)(images), net(images))


def test_one_with_weights_of_its_own_is_refused():
    model = Made(lambda m, x: m.classifier(nn.Conv2d(8, 8, 1)(m.features(x))))
    with pytest.raises(UnsupportedModelError, match="conv2d on a parameter that no layer holds"):
        multiquantize(model, [2], input_shape=IMAGE)


def test_a_dropout_that_is_always_in_training_is_named():
    model = Made(lambda m, x: m.classifier(nn.Dropout(0.5)(m.features(x))))
    with pytest.raises(SelfCheckError, match="random numbers in evaluation, too: a dropout"):
        multiquantize(model, [2], input_shape=IMAGE)
