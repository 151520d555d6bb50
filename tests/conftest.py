"""One thread, fixed seeds, and networks that many tests share."""

from collections.abc import Callable, Iterator
from weakref import WeakKeyDictionary

import pytest
import torch
from hypothesis import settings
from torch import Tensor

from brevitas_multiquant import MultiQuantNet, calibrate, multiquantize
from brevitas_multiquant.quant import layers
from tests.tiny import IMAGE, TinyNet

torch.set_num_threads(1)
# The first example of a test pays for what torch sets up lazily; a shared machine stalls at times.
settings.register_profile("shared_machine", deadline=None, max_examples=50, derandomize=True)
settings.load_profile("shared_machine")


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture
def own_rules(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Rules of layers that a test registers are gone after it."""
    with monkeypatch.context() as patch:
        patch.setattr(layers, "_RULES", dict(layers._RULES))
        patch.setattr(layers, "_FOUND", WeakKeyDictionary())
        yield


@pytest.fixture
def images() -> Tensor:
    """A batch for the tiny models."""
    return torch.randn(4, *IMAGE[1:], generator=torch.Generator().manual_seed(1))


@pytest.fixture
def tiny() -> TinyNet:
    """A float model with an in-place activation, a residual addition, and a tensor read twice."""
    return TinyNet()


@pytest.fixture
def make_net() -> Callable[..., MultiQuantNet]:
    """Rewrites a tiny model; the options are those of `multiquantize`."""

    def make(model: torch.nn.Module | None = None, bits=(2, 4), **options) -> MultiQuantNet:
        return multiquantize(model or TinyNet(), bits, input_shape=IMAGE, **options)

    return make


@pytest.fixture
def net(make_net: Callable[..., MultiQuantNet], images: Tensor) -> MultiQuantNet:
    """A calibrated network of `TinyNet` at 2 and 4 bits."""
    network = make_net()
    calibrate(network, [images])
    return network
