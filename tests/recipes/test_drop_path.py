"""``--drop-path``: where a model drops residual paths, and a refusal where it does not."""

import pytest
import torch

from brevitas_multiquant.recipes.errors import OptionError
from brevitas_multiquant.recipes.network.build import create_float_model, model_source
from brevitas_multiquant.recipes.options.model import ModelOptions


@pytest.mark.parametrize("name", ["test_efficientnet", "torchvision:efficientnet_b0"])
def test_drop_path_reaches_the_model(name):
    options = ModelOptions(model=name, drop_path=0.25)
    model = create_float_model(model_source(options, 3), False, None)
    rates = [
        getattr(one, "drop_prob", getattr(one, "p", None))
        for one in model.modules()
        if type(one).__name__ in ("DropPath", "StochasticDepth")
    ]
    assert rates and 0 < max(rates) <= 0.25


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("hrnet_w18_small", "got hrnet_w18_small of timm, which takes no drop_path_rate"),
        ("torchvision:vgg11", "got vgg11 of torchvision, which takes no stochastic_depth_prob"),
    ],
)
def test_drop_path_is_refused_where_a_model_has_none(name, what):
    """The first takes any argument, and passes it over; the second none that it does not know."""
    with torch.device("meta"), pytest.raises(OptionError, match=what):
        create_float_model(model_source(ModelOptions(model=name, drop_path=0.1), 3), False, None)


def test_drop_path_given_twice():
    twice = ModelOptions(model="resnet18", drop_path=0.1, model_kwargs=[("drop_path_rate", 0.2)])
    with pytest.raises(OptionError, match="expected it once, got --model-kwargs drop_path_rate"):
        model_source(twice, 3)
