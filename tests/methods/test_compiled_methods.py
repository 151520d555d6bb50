"""torch.compile of networks with one body: a graph for each bit-width and mode, and no more."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from functorch.compile import make_boxed_func
from torch import Tensor
from torch._dynamo.backends.common import aot_autograd

from brevitas_multiquant import calibrate, multiquantize
from tests.one_body import sample
from tests.tiny import IMAGE, TinyNet

METHODS: dict[str, dict[str, Any]] = {
    "adabits": {"bits": [2, 8], "method": "adabits"},
    "tanh": {"bits": [4], "method": "adabits", "weight_range": "tanh", "grid": "original"},
    "any_precision": {"bits": [1, 4], "method": "any_precision"},
    "double_rounding": {"bits": [2, 4], "method": "double_rounding"},
    "vertical_layering": {"bits": [2, 4], "method": "vertical_layering"},
}


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize("method", METHODS)
def test_every_bit_width_is_compiled_once_in_either_mode(method: str) -> None:
    net = multiquantize(TinyNet(), input_shape=IMAGE, check=False, **METHODS[method])
    images, graphs = sample(4), []
    calibrate(net, [images])
    twin = net.view()  # not compiled, on the same tensors

    def counting(graph: torch.fx.GraphModule, _: list[Tensor]) -> Callable[..., Any]:
        graphs.append(graph)
        return graph.forward

    net.compile(backend=counting, fullgraph=True, dynamic=False)
    for _ in range(2):
        for training in (True, False):
            net.train(training), twin.train(training)
            for bits in net.bits:
                found = []
                for run in (net, twin):
                    net.zero_grad()
                    with torch.set_grad_enabled(training), run.at_bits(bits):
                        logits = run(images)
                    found.append([logits.detach()])
                    if training:
                        logits.square().sum().backward()
                        found[-1] += [p.grad for p in net.parameters() if p.grad is not None]
                        found[-1] = [tensor.clone() for tensor in found[-1]]
                assert torch.equal(found[0][0], found[1][0]), (training, bits)
                for ours, theirs in zip(*found, strict=True):
                    # a graph sums gradients in another order; a step's is a difference of sums
                    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)
        assert len(graphs) == 2 * len(net.bits)


@pytest.mark.parametrize("method", [name for name in METHODS if len(METHODS[name]["bits"]) > 1])
def test_graphs_of_all_bit_widths_are_one_text(method: str) -> None:
    """So torch's cache has the code of all, once one is compiled: no number in it is a bit-width's.

    Any-Precision's one bit is the sign of a weight, which is another function.
    """
    options = METHODS[method] | ({"bits": [2, 4]} if method == "any_precision" else {})
    net = multiquantize(TinyNet(), input_shape=IMAGE, check=False, **options)
    calibrate(net, [sample(4)])
    texts: list[str] = []

    def told(graph: torch.fx.GraphModule, _: Any) -> Callable[..., Any]:
        texts.append(graph.code)
        return make_boxed_func(graph.forward)

    net.train().compile(backend=aot_autograd(fw_compiler=told, bw_compiler=told), dynamic=False)
    for bits in net.bits:
        with net.at_bits(bits):
            net(sample(4)).square().mean().backward()
    assert len(texts) == 2 * len(net.bits)  # forward and backward of each
    assert len(set(texts)) == 2
