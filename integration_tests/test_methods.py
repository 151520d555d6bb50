"""Every method on one network of each kind in both libraries."""

import pytest
import torch

from integration_tests.methods import ONE_BODY, check
from integration_tests.models import build, small_shape, zoo


@pytest.mark.parametrize("name", zoo().representatives)
@pytest.mark.parametrize("method", ONE_BODY)
def test_each_representative(method: str, name: str) -> None:
    torch.manual_seed(0)
    model = build(name)
    check(model, small_shape(model, 64), ONE_BODY[method])
