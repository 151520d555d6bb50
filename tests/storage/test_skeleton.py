"""Networks without memory: counted before they are built, given their tensors afterwards."""

import pytest
import torch
from torch import nn

from brevitas_multiquant import calibrate, multiquantize
from brevitas_multiquant.errors import SourceError
from brevitas_multiquant.storage.skeleton import (
    limited_construction,
    materialise,
    skeleton_of,
    unknown_values,
    without_memory,
)
from tests.tiny import IMAGE, TinyNet


class Filtered(nn.Module):
    """A buffer that its author computes and keeps out of the state dict."""

    def __init__(self):
        super().__init__()
        filter_ = torch.arange(4).float().softmax(0)
        self.register_buffer("filter", filter_, persistent=False)


def test_a_skeleton_of_a_network_gets_every_constant_back():
    """What the state dict does not bring is as in the network built for real."""
    images = torch.randn(2, *IMAGE[1:])
    real = multiquantize(TinyNet(), [2, 4], input_shape=IMAGE, check=False)
    calibrate(real, [images])
    with without_memory():
        built = multiquantize(TinyNet(), [2, 4], input_shape=IMAGE, check=False)
    assert {t.device.type for t in (*built.parameters(), *built.buffers())} == {"meta"}
    assert not unknown_values(built)
    materialise(built)
    assert {t.device.type for t in (*built.parameters(), *built.buffers())} == {"cpu"}
    built.load_state_dict(real.state_dict())
    given, wanted = dict(built.named_buffers()), dict(real.named_buffers())
    assert given.keys() == wanted.keys()
    assert all(torch.equal(given[name], wanted[name]) for name in wanted)
    with torch.no_grad():
        assert torch.equal(built.eval()(images), real.eval()(images))


def test_values_that_only_the_author_knows_are_named():
    with without_memory():
        built = nn.Sequential(Filtered())
    assert unknown_values(built) == ["0.filter"]
    real = nn.Sequential(Filtered())
    skeleton = skeleton_of(real)
    assert not unknown_values(skeleton)
    materialise(skeleton)
    assert torch.equal(skeleton[0].filter, real[0].filter)
    assert skeleton[0].filter is not real[0].filter


def test_a_skeleton_keeps_ties_and_leaves_the_model_alone():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[1].weight = model[0].weight
    skeleton = skeleton_of(model)
    assert skeleton[1].weight is skeleton[0].weight
    assert model[0].weight.device.type == "cpu"


@pytest.mark.parametrize(
    ("limits", "kind"),
    [({"numbers": 10**9, "modules": 10}, "modules"), ({"numbers": 99, "modules": 99}, "numbers")],
)
def test_limits_stop_a_construction_without_end(limits, kind):
    def endless():
        model = nn.Sequential()
        while True:
            model.append(nn.Linear(3, 3, device="meta"))

    with pytest.raises(SourceError, match=f"at most .* {kind}"), limited_construction(**limits):
        endless()
    nn.Linear(1000, 1000, device="meta")  # the limit is gone with the block
