"""Small integer networks with weights and tables of drawn bit-widths, for `finn_rules.py`."""

import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import timm
import torch
from torch import nn

import brevitas_multiquant.core.cifar_networks  # noqa: F401  (registers the CIFAR networks)
from brevitas_multiquant import calibrate, extract_subnet, multiquantize
from brevitas_multiquant.export.finn.check import branch_names
from brevitas_multiquant.export.finn.integer_graph import (
    Addition,
    Convolution,
    IntegerGraph,
    MaxPool,
    PositionSum,
    Stream,
    Thresholds,
)
from brevitas_multiquant.export.finn.lower import lower
from brevitas_multiquant.export.sample import smooth_images

SEED = 20230508


def small_vgg() -> nn.Module:
    """Four convolutions, two max pools, two linear layers; odd numbers of channels."""
    layers: list[nn.Module] = []
    for inputs, outputs, pool in ((3, 12, False), (12, 20, True), (20, 30, True), (30, 36, False)):
        layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU()]
        layers += [nn.MaxPool2d(2)] if pool else []
    head = [nn.Flatten(), nn.Linear(36 * 16, 24), nn.ReLU(), nn.Linear(24, 10)]
    return nn.Sequential(*layers, *head)


def small_mobilenet() -> nn.Module:
    """Depthwise and pointwise convolutions, with strides, and a 5x5 kernel."""
    layers = [nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU()]
    for inputs, outputs, kernel, stride in ((8, 16, 3, 1), (16, 32, 3, 2), (32, 48, 5, 1)):
        layers += [nn.Conv2d(inputs, inputs, kernel, stride, kernel // 2, groups=inputs)]
        layers += [nn.BatchNorm2d(inputs), nn.ReLU(), nn.Conv2d(inputs, outputs, 1)]
        layers += [nn.BatchNorm2d(outputs), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(48, 10))


NETWORKS: dict[str, tuple[Callable[[], nn.Module], int]] = {  # name -> (model, image size)
    "resnet8": (lambda: timm.create_model("cifar_resnet8", num_classes=10), 32),
    "vgg": (small_vgg, 16),
    "mobilenet": (small_mobilenet, 32),
    "resnet20": (lambda: timm.create_model("cifar_resnet20", num_classes=10), 32),
    "vgg11": (lambda: timm.create_model("cifar_vgg11_bn", num_classes=10), 32),
    "mobilenetv1": (lambda: timm.create_model("cifar_mobilenetv1", num_classes=10), 32),
}


@dataclass(frozen=True)
class Run:
    """One network with one assignment on one board.

    Args:
        network: of `NETWORKS`.
        fps: frames a second at 200 MHz.
        weights: bit-widths that each layer's weights are drawn from; none: as exported.
        activations: the same for threshold layers.
        bits: bit-width of the exported network, two bits per branch.
        board: of FINN.
    """

    network: str
    fps: int
    weights: tuple[int, ...] = ()
    activations: tuple[int, ...] = ()
    bits: int = 2
    board: str = "ZCU104"


ANY = (2, 3, 4, 5, 6, 8)
RUNS = {
    "resnet8_2b": Run("resnet8", 1000),
    "resnet8_3b_half": Run("resnet8", 1000, bits=3),
    "resnet8_4b": Run("resnet8", 500, bits=4),
    "resnet8_w3a3": Run("resnet8", 1000, (3,), (3,)),
    "resnet8_w4a4": Run("resnet8", 1000, (4,), (4,)),
    "resnet8_w8a8": Run("resnet8", 1000, (8,), (8,)),
    "resnet8_any": Run("resnet8", 1000, ANY, ANY),
    "resnet8_any_slow": Run("resnet8", 50, ANY, ANY),
    "resnet8_any_fast": Run("resnet8", 20000, ANY, ANY),
    "resnet8_any_pynq": Run("resnet8", 200, ANY, ANY, board="Pynq-Z1"),
    "resnet8_any_versal": Run("resnet8", 2000, ANY, ANY, board="VCK190"),
    "vgg_w2a2": Run("vgg", 2000, (2,), (2,)),
    "vgg_w3a4": Run("vgg", 2000, (3,), (4,)),
    "vgg_any": Run("vgg", 1000, ANY, ANY),
    "vgg_any_fast": Run("vgg", 100000, ANY, ANY),
    "vgg_any_pynq": Run("vgg", 500, ANY, ANY, board="Pynq-Z1"),
    "vgg_any_versal": Run("vgg", 5000, ANY, ANY, board="VCK190"),
    "mobilenet_w2a4": Run("mobilenet", 1000, (2,), (4,)),
    "mobilenet_w4a4": Run("mobilenet", 1000, (4,), (4,)),
    "mobilenet_any": Run("mobilenet", 2000, ANY, ANY),
    "mobilenet_any_slow": Run("mobilenet", 100, ANY, ANY),
    "mobilenet_any_fast": Run("mobilenet", 200000, ANY, ANY),
    "mobilenet_any_versal": Run("mobilenet", 5000, ANY, ANY, board="VCK190"),
}
"""Runs that files are kept of."""

HELD_OUT = {
    "resnet20_w3a3": Run("resnet20", 1000, (3,), (3,)),
    "resnet20_any": Run("resnet20", 1000, ANY, ANY),
    "resnet20_any_fast": Run("resnet20", 5000, ANY, ANY, board="Ultra96"),
    "vgg11_w2a2": Run("vgg11", 500, (2,), (2,)),
    "vgg11_any": Run("vgg11", 500, ANY, ANY),
    "vgg11_any_fast": Run("vgg11", 3000, ANY, ANY, board="U250"),
    "mobilenetv1_w4a4": Run("mobilenetv1", 500, (4,), (4,)),
    "mobilenetv1_any": Run("mobilenetv1", 500, ANY, (2, 3, 4)),
    "mobilenetv1_any_fast": Run("mobilenetv1", 4000, ANY, (2, 3, 4), board="VCK190"),
}
"""Runs of larger networks that none is kept of, to compare with alone."""


def integer_network(run: Run) -> IntegerGraph:
    """The network as it is exported, at its own bit-width."""
    make, size = NETWORKS[run.network]
    torch.manual_seed(SEED)
    shape = (1, 3, size, size)
    candidates = (2, run.bits, 4) if run.bits % 2 else (run.bits,)
    net = multiquantize(make(), sorted({*candidates}), profile="finn", input_shape=shape)
    with torch.no_grad():
        for norm in net.modules():
            if isinstance(norm, nn.BatchNorm2d):
                norm.weight.normal_(1.0, 0.6)
                norm.bias.normal_(0.0, 0.3)
    calibrate(net, [smooth_images((8, *shape[1:]))])
    subnet = extract_subnet(net.eval(), run.bits)
    return lower(subnet, branch_names(net, run.bits), shape)


def drawn_network(run: Run, seed: int) -> IntegerGraph:
    """The network of a run: as exported, or with what the seed gives it."""
    graph = integer_network(run)
    return redrawn(graph, run, seed) if run.weights else graph


def redrawn(graph: IntegerGraph, run: Run, seed: int) -> IntegerGraph:
    """The same layers with weights and tables of drawn bit-widths, and the ranges that follow."""
    draw, numbers = random.Random(seed), np.random.default_rng(seed)
    streams: dict[str, Stream] = {graph.input.name: graph.input}
    layers = []
    for layer in graph.layers:
        inputs = tuple(streams[stream.name] for stream in layer.inputs)
        layer, limits = _REDRAW[type(layer)](layer, inputs, run, draw, numbers)
        output = replace(layer.output, lowest=limits[0], highest=limits[1])
        streams[output.name] = output
        layers.append(replace(layer, inputs=inputs, output=output))
    output = streams[graph.output.name]
    return replace(graph, layers=layers, output=output)


def _convolution(layer: Any, inputs: Any, run: Run, draw: Any, numbers: Any) -> Any:
    bits, (source,) = draw.choice(run.weights), inputs
    most = 2 ** (bits - 1) - 1
    values = numbers.integers(-most, most + 1, tuple(layer.weight.shape))
    values.flat[:2] = -most, most  # the type that was drawn
    rows = values.reshape(len(values), -1)
    above, below = np.clip(rows, 0, None).sum(1), np.clip(rows, None, 0).sum(1)
    lowest = above * min(source.lowest, 0) + below * source.highest
    highest = above * source.highest + below * min(source.lowest, 0)
    weight = torch.from_numpy(values).to(layer.weight.dtype)
    changed = replace(layer, weight=weight, weight_bits=bits, narrow=True)
    return changed, (int(lowest.min()), int(highest.max()))


def _thresholds(layer: Any, inputs: Any, run: Run, draw: Any, numbers: Any) -> Any:
    bits, (source,) = draw.choice(run.activations), inputs
    spread = draw.choice((1, 2, 4))  # trained tables rarely reach the ends of the accumulators
    low, high = source.lowest // spread, source.highest // spread + 1
    channels = layer.table.shape[0]
    table = np.sort(numbers.integers(low, high + 1, (channels, 2**bits - 1)), axis=1)
    first = -(2 ** (bits - 1)) if layer.first_code < 0 else 0
    table = torch.from_numpy(table).to(layer.table.dtype)
    changed = replace(layer, table=table, first_code=first, bits=bits)
    return changed, (first, first + 2**bits - 1)


def _addition(layer: Any, inputs: Any, *_: Any) -> Any:
    return layer, (sum(one.lowest for one in inputs), sum(one.highest for one in inputs))


def _max_pool(layer: Any, inputs: Any, *_: Any) -> Any:
    return layer, (inputs[0].lowest, inputs[0].highest)


def _position_sum(layer: Any, inputs: Any, *_: Any) -> Any:
    count = inputs[0].shape[1] * inputs[0].shape[2]
    return layer, (count * inputs[0].lowest, count * inputs[0].highest)


_REDRAW: dict[type, Callable[..., Any]] = {
    Convolution: _convolution,
    Thresholds: _thresholds,
    Addition: _addition,
    MaxPool: _max_pool,
    PositionSum: _position_sum,
}
