"""Metrics at each bit-width, against sums by hand."""

import pytest
import torch
from torch import nn

from brevitas_multiquant import calibrate, multiquantize
from brevitas_multiquant.errors import ConfigError, NetworkError
from brevitas_multiquant.training.measure import measure
from tests.training.test_entries import TwoHeads

IMAGES = torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(0))
MASKS = torch.randint(3, (6, 8, 8), generator=torch.Generator().manual_seed(1))
BATCHES = [(IMAGES[:4], MASKS[:4]), (IMAGES[4:], MASKS[4:])]


@pytest.fixture
def net():
    torch.manual_seed(0)
    net = multiquantize(TwoHeads(), [2, 4], input_shape=(1, 3, 8, 8))
    calibrate(net, [IMAGES])
    return net.train()


class Hits:
    """Pixels that are right, and calls of each method."""

    def reset(self):
        self.hits = 0

    def update(self, prediction, target):
        self.hits += int((prediction == target).sum())

    def compute(self):
        return self.hits


def classes(output):
    return output["out"].argmax(1)


def by_hand(net, bits):
    net.eval()
    with torch.no_grad(), net.at_bits(bits):
        return classes(net(IMAGES))


def test_each_bit_width_is_measured_in_evaluation(net):
    before = [module.training for module in net.modules()]
    found = measure(net, BATCHES, Hits(), prediction=classes)
    assert [module.training for module in net.modules()] == before
    assert found == {bits: int((by_hand(net, bits) == MASKS).sum()) for bits in (2, 4)}


def test_mean_iou_by_torchmetrics(net):
    classification = pytest.importorskip("torchmetrics.classification")
    metric = classification.MulticlassJaccardIndex(3)
    found = measure(net, BATCHES, metric, settings=[4], prediction=lambda output: output["out"])
    told = by_hand(net, 4)
    shares = []
    for one in range(3):
        union = ((told == one) | (one == MASKS)).sum()
        shares.append(((told == one) & (one == MASKS)).sum() / union)
    # two divisions of whole numbers in fp32
    torch.testing.assert_close(found[4], torch.stack(shares).mean(), rtol=1e-6, atol=0)


def test_a_metric_may_take_the_whole_output(net):
    class Entries(Hits):
        def update(self, prediction, target):
            super().update(classes(prediction), target)

    assert measure(net, BATCHES, Entries()) == measure(net, BATCHES, Hits(), prediction=classes)


def test_named_errors(net):
    classification = pytest.importorskip("torchmetrics.classification")
    with pytest.raises(ConfigError, match=r"prediction: .* the entries \['out', 'aux'\], got none"):
        measure(net, BATCHES, classification.MulticlassJaccardIndex(3))
    with pytest.raises(ConfigError, match="2 times"):
        measure(net, iter(BATCHES), Hits())
    for batches in ([], [IMAGES], [(IMAGES,)]):
        with pytest.raises(ConfigError, match=r"batches: expected .*pair"):
            measure(net, batches, Hits())
    for metric in (None, Hits):
        with pytest.raises(ConfigError, match="metric: expected an object with update"):
            measure(net, BATCHES, metric)
    with pytest.raises(NetworkError):
        measure(nn.Conv2d(3, 3, 1), BATCHES, Hits())
