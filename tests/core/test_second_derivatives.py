"""Hessian-vector products, the transforms of ``torch.func``, and tensors without a value."""

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from brevitas_multiquant import calibrate, multiquantize
from brevitas_multiquant.core.clip_quantize import (
    guarded_upper,
    quantize_activation,
    quantize_weight,
)
from brevitas_multiquant.core.grids import WEIGHT_FORMATS
from brevitas_multiquant.core.power_of_two import (
    integer_range,
    power_of_two_scale,
    quantize_fixed_point,
)
from brevitas_multiquant.quant import kept_weights

# The same sums of a few thousand fp64 numbers, associated differently.
CLOSE = {"rtol": 1e-9, "atol": 1e-9}


def values(seed=0, shape=(3, 4, 5, 5)):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def leaves(lower=-0.7, upper=1.3):
    numbers = (torch.tensor(bound, dtype=torch.float64) for bound in (lower, upper))
    return [tensor.requires_grad_() for tensor in (values(), *numbers)]


def first_derivatives(x, lower, upper, grad, gain):
    """The closed form in plain operations, which autograd differentiates again."""
    width = guarded_upper(lower, upper) - lower
    passed = torch.where((x >= lower) & (x <= upper), grad, torch.zeros_like(grad))
    slope = gain / width
    position = (passed * (x - lower)).sum() / width
    return passed * slope, slope * (position - passed.sum()), -slope * position


def weighted(tensors):
    """A scalar that depends on every number of the tensors, and not linearly."""
    return sum((values(9 + i, t.shape) * t * t).sum() for i, t in enumerate(tensors))


@pytest.mark.parametrize("bounds", [(-0.7, 1.3), (0.0, 1.0), (-2.0, -0.5)])
@pytest.mark.parametrize("name", [None, *WEIGHT_FORMATS])
def test_the_closed_form_has_the_derivatives_of_its_formula(name, bounds):
    """With respect to x, both bounds and the gradient that comes in."""
    form = None if name is None else WEIGHT_FORMATS[name]
    gain = 15 if form is None else form.step * form.levels
    results = []
    for ours in (True, False):
        x, lower, upper = leaves(*bounds)
        grad = values(1).requires_grad_()
        if ours:
            codes = (
                quantize_activation(x, lower, upper, 4)
                if form is None
                else quantize_weight(x, lower, upper, form)
            )
            first = torch.autograd.grad(codes, (x, lower, upper), grad, create_graph=True)
        else:
            first = first_derivatives(x, lower, upper, grad, gain)
        second = torch.autograd.grad(weighted(first), (x, lower, upper, grad))
        results.append([*first, *second])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, **CLOSE)
    assert all(t.abs().sum() > 0 for t in results[0])


def test_transforms_give_what_autograd_gives():
    x, lower, upper = leaves()

    def loss(*inputs):
        return (quantize_activation(*inputs, 4) * values(2)).square().sum()

    expected = torch.autograd.grad(loss(x, lower, upper), (x, lower, upper))
    inputs = [tensor.detach() for tensor in (x, lower, upper)]
    found = torch.func.grad(loss, argnums=(0, 1, 2))(*inputs)
    _, vjp = torch.func.vjp(loss, *inputs)
    for one, two, other in zip(found, vjp(torch.ones(()).double()), expected, strict=True):
        torch.testing.assert_close(one, other, **CLOSE)
        torch.testing.assert_close(two, other, **CLOSE)


@pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")
@pytest.mark.parametrize("batched", [(0, None, None), (0, 0, None), (None, 0, 0), (None, None, 0)])
def test_vmap_over_images_and_over_ranges(batched):
    x, several = values(), torch.tensor([-0.7, -0.2, 0.0]).double()
    inputs = [
        x if batched[0] == 0 else x[0],
        several if batched[1] == 0 else several[0],
        several + 1.5 if batched[2] == 0 else several[0] + 1.5,
    ]

    def gradients(*own):
        loss = lambda *t: quantize_activation(*t, 4).square().sum()  # noqa: E731
        return torch.func.grad(loss, argnums=(0, 1, 2))(*own)

    codes = torch.func.vmap(lambda *own: quantize_activation(*own, 4), in_dims=batched)(*inputs)
    found = torch.func.vmap(gradients, in_dims=batched)(*inputs)
    for i in range(3):
        own = [t[i] if dim == 0 else t for t, dim in zip(inputs, batched, strict=True)]
        assert torch.equal(codes[i], quantize_activation(*own, 4))
        for all_of_them, one in zip(found, gradients(*own), strict=True):
            torch.testing.assert_close(all_of_them[i], one, **CLOSE)


def test_forward_mode_is_refused_by_torch_by_name():
    x, lower, upper = (tensor.detach() for tensor in leaves())
    with pytest.raises(NotImplementedError, match="implement the jvp function"):
        torch.func.jvp(lambda t: quantize_activation(t, lower, upper, 4), (x,), (x,))


@pytest.fixture
def net():
    """More weights than values of the input, so that a training step keeps them as bytes."""
    model = nn.Sequential(
        *(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 16, 3, padding=1)),
        *(nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 3, groups=2), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 5)),
    )
    network = multiquantize(model, [2, 4], input_shape=(1, 3, 4, 4)).double()
    calibrate(network, [values(3, (2, 3, 4, 4))])
    return network


def hessian_vector_product(net, loss):
    parameters = dict(net.named_parameters())
    first = torch.autograd.grad(loss, parameters.values(), create_graph=True, allow_unused=True)
    used = [gradient for gradient in first if gradient is not None]
    product = sum((values(20 + i, g.shape) * g).sum() for i, g in enumerate(used))
    second = torch.autograd.grad(product, parameters.values(), allow_unused=True)
    return dict(zip(parameters, second, strict=True))


def test_a_hessian_of_weights_kept_as_bytes(net, monkeypatch):
    images, products, linked = values(3, (2, 3, 4, 4)), [], []
    stand_in = kept_weights._StandIn.apply
    monkeypatch.setattr(
        kept_weights._StandIn, "apply", lambda t: linked.append(t.shape) or stand_in(t)
    )
    for as_floats in (False, True):
        monkeypatch.setattr(kept_weights, "_others_decide", lambda answer=as_floats: answer)
        products.append(hessian_vector_product(net.train(), net(images).square().sum()))
    assert {len(shape) for shape in linked} == {2, 4}  # convolutions and a linear layer
    for name, found in products[0].items():
        expected = products[1][name]
        assert (found is None) == (expected is None), name
        if found is not None:
            torch.testing.assert_close(found, expected, **CLOSE)
    assert products[0]["branches.1.2.weight"].abs().sum() > 0


def test_a_hessian_by_transforms_is_the_one_by_autograd(net):
    images = values(3, (2, 3, 4, 4))
    net.eval()

    def loss(parameters):
        return torch.func.functional_call(net, parameters, (images,)).square().sum()

    parameters = {name: p.detach() for name, p in net.named_parameters()}
    expected = hessian_vector_product(net, net(images).square().sum())
    used = [name for name, product in expected.items() if product is not None]

    def product(parameters):
        first = torch.func.grad(loss)(parameters)
        return sum((values(20 + i, first[n].shape) * first[n]).sum() for i, n in enumerate(used))

    found = torch.func.grad(product)(parameters)
    for name in used:
        torch.testing.assert_close(found[name], expected[name], **CLOSE)


@pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")
def test_gradients_of_each_image(net):
    images = values(3, (3, 3, 4, 4))
    net.eval()
    parameters = {name: p.detach() for name, p in net.named_parameters()}

    def gradients(own, image):
        logits = lambda p: torch.func.functional_call(net, p, (image[None],))  # noqa: E731
        return torch.func.grad(lambda p: logits(p).square().sum())(own)

    found = torch.func.vmap(gradients, in_dims=(None, 0))(parameters, images)
    for i, image in enumerate(images):
        for name, gradient in gradients(parameters, image).items():
            torch.testing.assert_close(found[name][i], gradient, **CLOSE)


@pytest.mark.parametrize("training", [True, False])
def test_tensors_without_a_value_run_forward_and_backward(net, training):
    net.train(training)
    state = {**dict(net.named_parameters()), **dict(net.named_buffers())}
    with FakeTensorMode() as mode:
        fakes = {name: mode.from_tensor(tensor) for name, tensor in state.items()}
        images = torch.empty(2, 3, 4, 4, dtype=torch.float64)
        logits = torch.func.functional_call(net, fakes, (images,))
        assert logits.shape == (2, 5)
        logits.sum().backward()
    net(values(3, (2, 3, 4, 4))).sum().backward()
    for name, parameter in net.named_parameters():
        found, expected = fakes[name].grad, parameter.grad
        assert (found is None) == (expected is None), name
        assert found is None or found.shape == expected.shape


@pytest.mark.parametrize("signed", [True, False])
def test_fixed_point_values_have_the_derivatives_of_their_formula(signed):
    """The reach's gradient is (rounded - exact) inside and the end of the range outside of it."""
    lowest, highest = integer_range(3, signed)
    results = []
    for ours in (True, False):
        x, grad = values().requires_grad_(), values(1).requires_grad_()
        reach = torch.tensor(0.9, dtype=torch.float64, requires_grad=True)
        if ours:
            quantized = quantize_fixed_point(x, reach, 3, signed)
            first = torch.autograd.grad(quantized, (x, reach), grad, create_graph=True)
        else:
            scale = power_of_two_scale(reach.detach(), 3, signed)
            rounded = (x / scale + 0.5).floor().detach()
            inside = (rounded >= lowest) & (rounded <= highest)
            zeros = torch.zeros_like(grad)
            error = rounded.clamp(lowest, highest) - torch.where(inside, x / scale, zeros)
            first = torch.where(inside, grad, zeros), (grad * error).sum() * scale / reach
        second = torch.autograd.grad(weighted(first), (x, reach, grad))
        results.append([*first, *second])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, **CLOSE)


def test_fixed_point_values_under_transforms():
    x, reach = values(), torch.tensor(0.9, dtype=torch.float64)

    def loss(*inputs):
        return quantize_fixed_point(*inputs, 4, True).square().sum()

    leaves = [tensor.clone().requires_grad_() for tensor in (x, reach)]
    expected = torch.autograd.grad(loss(*leaves), leaves)
    for found, other in zip(torch.func.grad(loss, argnums=(0, 1))(x, reach), expected, strict=True):
        torch.testing.assert_close(found, other, **CLOSE)
