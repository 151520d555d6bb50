"""The rewrite over real models, one family after the other, in both libraries.

The self-check is on, as it is by default: `multiquantize` itself compares each model with its
branch to the bit, in evaluation and in training mode.
"""

import pytest
import torch

from brevitas_multiquant import multiquantize
from brevitas_multiquant.quant.layers import WEIGHTED, CodeLayer
from tests.idle import idle_parameters
from tests.zoo import SHAPE, ZOO

BITS = [2, 4]


class Rewritten:
    """A float model, what it was before the rewrite, and the network made from it."""

    def __init__(self, build):
        torch.manual_seed(0)
        self.model = build().train()
        self.state = {name: value.clone() for name, value in self.model.state_dict().items()}
        self.ids = [id(part) for part in (*self.model.parameters(), *self.model.modules())]
        self.modes = [module.training for module in self.model.modules()]
        self.net = multiquantize(self.model, BITS, input_shape=SHAPE)
        self.images = torch.randn(3, *SHAPE[1:])


@pytest.fixture(scope="module", params=ZOO)
def rewritten(request):
    return Rewritten(ZOO[request.param])


def layers_of(part):
    return {name: module for name, module in part.named_modules() if isinstance(module, WEIGHTED)}


def test_every_layer_between_stem_and_head_is_two_bit(rewritten):
    net = rewritten.net
    stem, head = (list(layers_of(part)) for part in (net.stem, net.head))
    assert len(stem) == len(head) == 1
    body = list(layers_of(net.branches[0]))
    assert sorted([*stem, *body, *head]) == sorted(layers_of(rewritten.model))
    for branch in net.branches:
        assert all(isinstance(layer, CodeLayer) for layer in layers_of(branch).values())
    assert not any(isinstance(m, CodeLayer) for p in (net.stem, net.head) for m in p.modules())


def test_the_model_is_untouched(rewritten):
    model = rewritten.model
    assert [id(part) for part in (*model.parameters(), *model.modules())] == rewritten.ids
    assert [module.training for module in model.modules()] == rewritten.modes
    state = model.state_dict()
    assert list(state) == list(rewritten.state)
    assert all(torch.equal(state[name], value) for name, value in rewritten.state.items())


def test_nothing_is_shared_with_the_model(rewritten):
    ours = {p.data_ptr() for p in rewritten.net.parameters() if p.numel()}
    assert not ours & {p.data_ptr() for p in rewritten.model.parameters() if p.numel()}


def test_the_models_weights_are_in_every_branch(rewritten):
    layers = layers_of(rewritten.model)
    for branch in rewritten.net.branches:
        for name, layer in layers_of(branch).items():
            for key, parameter in layers[name].named_parameters(recurse=False):
                assert torch.equal(getattr(layer, key), parameter), f"{name}.{key}"


def test_quantizers_off_is_the_model(rewritten):
    """At 2 bits one branch runs, which makes the network the model; the oracle is the model."""
    net, model = rewritten.net, rewritten.model
    modes = [(module, module.training) for part in (net, model) for module in part.modules()]
    try:
        net.eval(), model.eval()
        with torch.no_grad(), net.floating(), net.at_bits(2):
            assert torch.equal(net(rewritten.images), model(rewritten.images))
    finally:
        for module, training in modes:
            module.training = training


def test_trains_at_every_bit_width(rewritten):
    net = rewritten.net.train()
    outputs = {}
    for bits in net.bits:
        net.zero_grad()
        with net.at_bits(bits):
            outputs[bits] = net(rewritten.images)
        torch.nn.functional.cross_entropy(outputs[bits], torch.arange(3)).backward()
        assert outputs[bits].shape == (3, 10)
        assert torch.isfinite(outputs[bits]).all()
        _check_gradients(net, bits)
    assert not torch.equal(outputs[2], outputs[4])


def _check_gradients(net, bits):
    """A finite gradient for all that runs at these bits, none for anything else."""
    idle = idle_parameters(net, bits)
    for name, parameter in net.named_parameters():
        if id(parameter) in idle:
            assert parameter.grad is None, f"{name} does not run at {bits} bits"
        else:
            assert parameter.grad is not None, f"{name} got no gradient at {bits} bits"
            assert torch.isfinite(parameter.grad).all(), name
    weights = [p for n, p in net.stem.named_parameters() if n.endswith("weight")]
    assert sum(weight.grad.abs().sum() for weight in weights) > 0
