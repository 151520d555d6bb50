"""Each method over 20 steps of a tiny network against its paper's formulas, by autograd.

The reference takes parameters from a copy of the network and nothing else: layers, norms,
quantizers, losses and updates are written out, for values instead of codes. Bit-Mixer has its own
in tests/methods/test_bit_mixer.py.
"""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from brevitas_multiquant import MultiQuantNet, calibrate, multiquantize, objective_of
from brevitas_multiquant.core.method import METHODS
from brevitas_multiquant.nn import SwitchableQuantizer
from brevitas_multiquant.quant.layers import weight_range
from brevitas_multiquant.quant.proxies import activation_tensor_quant
from brevitas_multiquant.training.range_rates import scaled_rate
from tests.formulas import activation_values_of, weight_values
from tests.tiny import IMAGE, TinyNet
from tests.training.by_hand import (
    DECAY,
    LR,
    MOMENTUM,
    RANGE_LR,
    AdamByHand,
    adaptive_rate_by_hand,
    cross_entropy,
    distillation,
    sgd_by_hand,
)

STEPS = 20
# float64; sums of gradients in another order, and the values of codes instead of codes, 20 times
FP64 = {"rtol": 1e-8, "atol": 1e-10}

BITS = (8, 4, 2)
CASES = {
    "individual": {"bits": [4]},
    "adabits centered": {"bits": BITS, "grid": "centered"},
    "adabits modified, tanh": {"bits": BITS, "grid": "modified", "weight_range": "tanh"},
    "adabits original": {"bits": BITS, "grid": "original"},
    "any_precision": {"bits": BITS},
    "any_precision quantized": {"bits": BITS, "shortcuts": "quantized"},
    "double_rounding": {"bits": BITS},
    "vertical_layering": {"bits": BITS},
}
"""Method, and what else there is to say -> options of `multiquantize`."""


class ByFormulas:
    """`TinyNet` at a bit-width, in training mode, in the domain of values."""

    def __init__(self, net: MultiQuantNet, training_bits: tuple[int, ...]) -> None:
        self.stem, self.body, self.head = net.stem, net.branches[0], net.head
        config = net.config
        self.grid = config.grid or "original"
        self.weight_kind = config.weight_range or "learned"
        self.activation_kind = config.activation_range or "learned"
        self.float_shortcuts = config.shortcuts == "float"
        self.stored = max(training_bits)

    def activation(self, x: Tensor, site: str, bits: int) -> Tensor:
        quantizer = next(
            module
            for module in self.body.modules()
            if isinstance(module, SwitchableQuantizer) and module.dial.site == site
        )
        learned = activation_tensor_quant(quantizer[str(bits)]).range_impl
        numbers = list(learned.parameters())
        if self.activation_kind == "step":
            numbers = [learned.lower, *numbers]
        return activation_values_of(x, self.activation_kind, numbers, bits, bits)

    def weight(self, name: str, bits: int) -> Tensor:
        layer = getattr(self.body, name)
        numbers = list(weight_range(layer).parameters())
        return weight_values(layer.weight, self.weight_kind, numbers, self.grid, bits, self.stored)

    def norm(self, x: Tensor, norm: torch.nn.BatchNorm2d) -> Tensor:
        mean = x.mean((0, 2, 3), keepdim=True)
        variance = ((x - mean) ** 2).mean((0, 2, 3), keepdim=True)
        normed = (x - mean) / (variance + norm.eps).sqrt()
        return normed * norm.weight.view(1, -1, 1, 1) + norm.bias.view(1, -1, 1, 1)

    def __call__(self, images: Tensor, bits: int) -> Tensor:
        body = self.body
        x = F.conv2d(images, self.stem.stem.weight, padding=1)
        x = torch.relu(self.norm(x, self.stem.stem_bn))
        quantized = self.activation(x, "conv1", bits)
        y = F.conv2d(quantized, self.weight("conv1", bits), stride=2, padding=1)
        y = torch.relu(self.norm(y, body.bn1[str(bits)]))
        y = self.activation(y, "conv2", bits)
        y = F.conv2d(y, self.weight("conv2", bits), body.conv2.bias, padding=1)
        y = self.norm(y, body.bn2[str(bits)])
        if self.float_shortcuts:
            y = y + F.conv2d(x, body.shortcut.weight, stride=2)
        else:
            y = y + F.conv2d(quantized, self.weight("shortcut", bits), stride=2)
        return F.linear(torch.relu(y).mean((2, 3)), self.head.fc.weight, self.head.fc.bias)


def labels_alone(run, images, target, bits, update):
    sum(cross_entropy(run(images, bit), target) for bit in bits).backward()
    update(RANGE_LR)


def recursive(run, images, target, bits, update):
    largest, middle, smallest = (run(images, bit) for bit in bits)
    loss = cross_entropy(largest, target)
    loss = loss + distillation(middle, largest) + distillation(smallest, middle)
    loss.backward()
    update(RANGE_LR)


def stepwise(run, images, target, bits, update):
    teacher = None
    for bit in bits:
        output = run(images, bit)
        loss = cross_entropy(output, target)
        if teacher is None:
            teacher = output.detach()
        else:
            loss = loss + distillation(output, teacher)
        loss.backward()
        update(adaptive_rate_by_hand(run.net, max(bits) - bit))


STEP_OF = {
    "individual": labels_alone,
    "adabits": labels_alone,
    "any_precision": recursive,
    "double_rounding": stepwise,
    "vertical_layering": labels_alone,
}


def batches():
    generator = torch.Generator().manual_seed(1)
    for _ in range(STEPS):
        yield torch.rand(16, *IMAGE[1:], generator=generator).double(), torch.arange(16) % 5


def train(net: MultiQuantNet) -> None:
    """As a user's loop does."""
    task = objective_of(net)
    model = torch.optim.SGD(net.model_parameters(), LR, MOMENTUM, weight_decay=DECAY)
    ranges = [*net.range_parameters()]
    optimizers = [model, *([torch.optim.Adam(ranges, RANGE_LR)] if ranges else [])]

    def update(bits: int) -> None:
        factor = task.range_rate(bits)
        for index, optimizer in enumerate(optimizers):
            with scaled_rate(optimizer, factor if index else 1.0):
                optimizer.step()
        net.zero_grad()

    for images, target in batches():
        if task.updates_after_each:
            task.step(images, target, update=update)
        else:
            task.step(images, target)
            update(max(net.bits))


def train_by_hand(net: MultiQuantNet, method: str, bits: tuple[int, ...]) -> None:
    run, momenta = ByFormulas(net, bits), {}
    run.net = net
    by_hand = AdamByHand(list(net.range_parameters()))

    def update(rate: float) -> None:
        sgd_by_hand(net.model_parameters(), momenta)
        by_hand.step(rate)

    for images, target in batches():
        STEP_OF[method](run, images, target, bits, update)


@pytest.mark.parametrize("case", CASES)
def test_twenty_steps_against_the_formulas(case: str) -> None:
    method, options = case.split()[0], CASES[case]
    torch.manual_seed(0)
    net = multiquantize(TinyNet(), method=method, input_shape=IMAGE, **options)
    calibrate(net, [torch.rand(16, *IMAGE[1:])])
    net.double().train()
    reference, start = copy.deepcopy(net), copy.deepcopy(net)
    train(net)
    train_by_hand(reference, method, tuple(options["bits"]))
    theirs, before = dict(reference.named_parameters()), dict(start.named_parameters())
    for name, value in net.named_parameters():
        torch.testing.assert_close(value, theirs[name], **FP64, msg=lambda m, n=name: f"{n}: {m}")
        assert not torch.equal(value, before[name]), name


def test_every_other_method_has_its_own() -> None:
    assert {*STEP_OF, "multiquant", "bit_mixer"} == {*METHODS}
