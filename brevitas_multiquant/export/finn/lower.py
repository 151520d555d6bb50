"""From the plain network of one bit-width to a network of integers, or every reason why not.

The graph is walked once. Between two integers torch computes factors, norms and activations; they
are collected until a quantizer ends them and become its threshold table.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from brevitas.nn import QuantConv2d, QuantIdentity, QuantLinear
from torch import Tensor, fx, nn

from brevitas_multiquant.errors import FinnMappingError
from brevitas_multiquant.export.finn.integer_graph import (
    Addition,
    ChannelSlice,
    Convolution,
    HostSide,
    IntegerGraph,
    Layer,
    MaxPool,
    PositionSum,
    Stream,
    Thresholds,
)
from brevitas_multiquant.export.finn.thresholds import directions, threshold_table
from brevitas_multiquant.fixed_point import integer_range
from brevitas_multiquant.nn.fixed_point import Divide, PlainMerge, PlainSum
from brevitas_multiquant.nn.plain import OutputScale, RangeToCodes, ScaleShift
from brevitas_multiquant.subnet import Subnet

_MONOTONE = (OutputScale, ScaleShift, RangeToCodes, Divide, nn.ReLU, nn.ReLU6, nn.Hardtanh)
_RISING = (RangeToCodes, Divide, nn.ReLU, nn.ReLU6, nn.Hardtanh)
_NOTHING_IN_EVALUATION = (nn.Dropout, nn.Dropout2d, nn.Identity)
_NOTHING_BY_NAME = ("DropPath", "DropBlock2d", "StochasticDepth")
_RELU_CALLS = {torch.relu, F.relu, "relu"}
_FLATTEN_CALLS = {torch.flatten, "flatten", "view", "reshape", "squeeze"}
_AVERAGE_CALLS = {torch.mean, "mean", F.adaptive_avg_pool2d}


@dataclass(frozen=True)
class Value:
    """A tensor of the network: integers, and what torch has done to them since.

    Args:
        stream: the integers; None for the image, and where an earlier problem hides them.
        shape: (C, H, W) of the tensor.
        functions: applied to each integer, in order.
        pools: max pools among them, as (number of functions before, pool).
        vector: whether torch holds the stream's integers as (N, C), not as (N, C, H, W).
        flat: the same of the tensor itself.
        known: False behind a problem, so that none is reported that only follows from another.
    """

    stream: Stream | None
    shape: tuple[int, int, int]
    functions: tuple[Callable[[Tensor], Tensor], ...] = ()
    pools: tuple[tuple[int, nn.MaxPool2d], ...] = ()
    vector: bool = False
    flat: bool = False
    known: bool = True

    def then(self, function: Callable[[Tensor], Tensor]) -> "Value":
        """The value after one more function."""
        return replace(self, functions=(*self.functions, function))


@dataclass
class Lowering:
    """One walk over a subnet; ``problems`` holds (module path, what is wrong and what to do)."""

    layers: list[Layer] = field(default_factory=list)
    problems: list[tuple[str, str]] = field(default_factory=list)
    image: tuple[Stream, float, tuple[int, int]] | None = None
    taken: set[Stream] = field(default_factory=set)
    flipped: dict[Stream, Tensor] = field(default_factory=dict)

    # the network

    def subnet(
        self, subnet: Subnet, branch_names: Sequence[str], shape: tuple[int, int, int]
    ) -> Value:
        """Walk the whole network; the value is that of the logits."""
        features = self.part("stem", subnet.stem, Value(None, shape))
        outputs = [
            self.part(name, branch, features)
            for name, branch in zip(branch_names, subnet.branches, strict=True)
        ]
        merged = self.merge(subnet.merge, branch_names, outputs)
        return self.part("head", subnet.head, merged)

    def merge(self, merge: nn.Module, names: Sequence[str], outputs: Sequence[Value]) -> Value:
        """Branch outputs as one value."""
        if isinstance(merge, PlainMerge):
            return self.sum("merge", merge.sum, outputs, names)
        return self.problem("merge", "adds float values: build with profile='finn'", outputs[0])

    def part(self, prefix: str, part: Any, source: Value) -> Value:
        """Walk the graph of stem, branch or head."""
        values: dict[fx.Node, Any] = {}
        for node in part.graph.nodes:
            arguments = [values.get(argument) for argument in node.all_input_nodes]
            if node.op == "placeholder":
                values[node] = source
            elif node.op == "output":
                return values[node.args[0]]
            elif node.op == "call_module":
                where = f"{prefix}.{node.target}"
                values[node] = self.module(where, part.get_submodule(str(node.target)), arguments)
            elif node.op in ("call_function", "call_method"):
                values[node] = self.call(f"{prefix}.{node.name}", node, arguments)
        raise AssertionError("a graph without an output")

    def module(self, where: str, module: Any, values: Sequence[Any]) -> Value:
        """What a module makes of its inputs."""
        if isinstance(module, PlainSum):
            return self.sum(where, module, values, ("left", "right"))
        if len(values) != 1:
            return self.unknown(where, type(module).__name__, values[0])
        (value,) = values
        if isinstance(module, nn.Sequential):
            for child in module:
                value = self.module(where, child, [value])
            return value
        for kinds, rule in self._rules():
            if isinstance(module, kinds):
                return rule(where, module, value)
        if type(module).__name__ in _NOTHING_BY_NAME:
            return value
        return self.unknown(where, type(module).__name__, value)

    def _rules(self) -> Iterable[tuple[Any, Callable[[str, Any, Value], Value]]]:
        yield QuantIdentity, self.quantizer
        yield QuantConv2d, self.convolution
        yield QuantLinear, self.linear
        yield (nn.Conv2d, nn.Linear), self.float_layer
        yield _MONOTONE, self.monotone
        yield nn.MaxPool2d, self.max_pool
        yield nn.AdaptiveAvgPool2d, self.average
        yield nn.Flatten, self.flatten
        yield _NOTHING_IN_EVALUATION, lambda where, module, value: value

    def call(self, where: str, node: fx.Node, values: Sequence[Any]) -> Value:
        """What a function or method makes of its inputs."""
        value = values[0] if values else None
        if len(values) == 1 and isinstance(value, Value):
            if node.target in _RELU_CALLS:
                return self.monotone(where, nn.ReLU(), value)
            if node.target is F.max_pool2d:
                return self.max_pool(where, nn.MaxPool2d(*node.args[1:], **node.kwargs), value)  # type: ignore[arg-type]
            if node.target in _FLATTEN_CALLS:
                return self.flatten(where, None, value)
            if node.target in _AVERAGE_CALLS:
                keeps = node.target is F.adaptive_avg_pool2d or node.kwargs.get("keepdim", False)
                pooled = self.average(where, nn.AdaptiveAvgPool2d(1), value)
                return pooled if keeps else self.flatten(where, None, pooled)
            if node.target == "narrow" and node.args[1:3] == (1, 0):
                return self.channel_slice(where, int(node.args[3]), value)  # type: ignore[arg-type]
        name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
        known = [v for v in values if isinstance(v, Value)]
        return self.unknown(where, str(name), known[0] if known else Value(None, (1, 1, 1)))

    # layers

    def convolution(self, where: str, conv: Any, value: Value) -> Value:
        """A convolution of codes."""
        problem = _unsupported_convolution(conv)
        kernel, stride, dilation = conv.kernel_size, conv.stride, conv.dilation
        padding = (0, 0) if isinstance(conv.padding, str) else conv.padding
        size = [
            (n + 2 * p - d * (k - 1) - 1) // s + 1
            for n, p, d, k, s in zip(
                value.shape[1:], padding, dilation, kernel, stride, strict=True
            )
        ]
        shape = (conv.out_channels, size[0], size[1])
        if problem:
            return self.problem(where, problem, replace(value, shape=shape))
        weight, stride, padding = _without_taps_on_padding(
            conv.weight, value.shape, stride, padding, dilation
        )
        options = (stride, padding, dilation, conv.groups, _is_narrow(conv))
        return self.weighted(where, weight, _weight_bits(conv), value, shape, options)

    def linear(self, where: str, linear: Any, value: Value) -> Value:
        """A linear layer, as a convolution whose kernel covers the whole image."""
        weight = linear.weight
        shape = (len(weight), 1, 1)
        if not value.known:
            return replace(value, shape=shape)
        if weight.shape[1] != value.shape[0] * value.shape[1] * value.shape[2]:
            return self.problem(where, "reads a tensor of another size", value)
        kernel = weight.view(len(weight), *value.shape)
        options = ((1, 1), (0, 0), (1, 1), 1, _is_narrow(linear))
        return self.weighted(where, kernel, _weight_bits(linear), value, shape, options)

    def weighted(
        self,
        where: str,
        weight: Tensor,
        weight_bits: int,
        value: Value,
        shape: tuple[int, int, int],
        options: tuple[Any, ...],
    ) -> Value:
        """Sums of products of codes; a common power of two of the codes is one of the sums too."""
        value = self.on_a_grid(where, value)
        if value.stream is None:
            return replace(value, shape=shape)
        lowest, highest = _sum_range(weight, value.stream)
        output = self.stream(shape, lowest, highest)
        layer = Convolution(where, (value.stream,), output, weight, weight_bits, *options)
        self.add(layer)
        return replace(value, stream=output, shape=shape)

    def float_layer(self, where: str, layer: nn.Module, value: Value) -> Value:
        """A layer that stayed float."""
        advice = (
            f"{type(layer).__name__} with float weights: build the network with profile='finn', or "
            "use a plain nn.Conv2d or nn.Linear here"
        )
        return self.problem(where, advice, value)

    def channel_slice(self, where: str, channels: int, value: Value) -> Value:
        """The first channels, as a half branch reads them."""
        value = self.on_a_grid(where, value)
        shape = (channels, *value.shape[1:])
        if value.stream is None:
            return replace(value, shape=shape)
        output = self.stream(shape, value.stream.lowest, value.stream.highest)
        self.add(ChannelSlice(where, (value.stream,), output))
        return replace(value, stream=output, shape=shape)

    def sum(
        self, where: str, module: PlainSum, values: Sequence[Value], names: Sequence[str]
    ) -> Value:
        """Operands through their quantizers, then binary additions."""
        quantized = [
            self.module(f"{where}.{name}", quantizer, [value])
            for name, quantizer, value in zip(names, module.quantizers, values, strict=True)
        ]
        total = quantized[0]
        for operand in quantized[1:]:
            total = self.addition(where, total, operand)
        return total

    def addition(self, where: str, left: Value, right: Value) -> Value:
        """Integers of one scale added."""
        if left.stream is None or right.stream is None:
            return replace(left, stream=None, known=left.known and right.known)
        if left.shape != right.shape:
            return self.problem(where, f"adds {left.shape} and {right.shape}", left)
        low = left.stream.lowest + right.stream.lowest
        output = self.stream(left.shape, low, left.stream.highest + right.stream.highest)
        self.add(Addition(where, (left.stream, right.stream), output))
        return replace(left, stream=output)

    def max_pool(self, where: str, pool: Any, value: Value) -> Value:
        """Deferred: the largest code is the code of the largest value."""
        kernel, stride, padding = (_pair(x) for x in (pool.kernel_size, pool.stride, pool.padding))
        if _pair(pool.dilation) != (1, 1) or pool.ceil_mode:
            return self.problem(where, "max pool with dilation or ceil_mode: use neither", value)
        if value.flat:
            return self.problem(where, "max pool of a vector", value)
        shape = (value.shape[0], *_pooled(value.shape, kernel, stride, padding))
        pools = (*value.pools, (len(value.functions), pool))
        return replace(value, shape=shape, pools=pools)  # type: ignore[arg-type]

    def average(self, where: str, pool: Any, value: Value) -> Value:
        """Global average pooling: a sum of integers, and torch's division as a function of it."""
        channels, height, width = value.shape
        if _pair(pool.output_size) != (1, 1):
            return self.problem(
                where, "average pool to more than one position: use a global one", value
            )
        if height == width == 1:
            return value
        value = self.on_a_grid(where, value)
        shape = (channels, 1, 1)
        if value.stream is None:
            return replace(value, shape=shape)
        count = height * width
        output = self.stream(shape, count * value.stream.lowest, count * value.stream.highest)
        self.add(PositionSum(where, (value.stream,), output))
        divide = partial(_mean_of_sum, pool, height, width)
        return replace(value, stream=output, shape=shape).then(divide)

    def flatten(self, where: str, module: Any, value: Value) -> Value:
        """Only how torch holds it changes."""
        return value if value.flat else replace(value.then(_flatten), flat=True)

    def monotone(self, where: str, function: Any, value: Value) -> Value:
        """A function that the next table takes in."""
        positions = value.shape[1] * value.shape[2]
        if value.flat and positions > 1 and isinstance(function, ScaleShift):
            return self.problem(where, "a norm of a flattened map: put it before flatten", value)
        if value.pools and not isinstance(function, _RISING):
            return self.problem(
                where, "a norm or factor behind a max pool: put the norm in front of it", value
            )
        return value.then(function)

    def quantizer(self, where: str, quantizer: Any, value: Value) -> Value:
        """A table of thresholds for everything since the last integers."""
        bits = int(quantizer.act_quant.bit_width())
        code_range = integer_range(bits, bool(quantizer.act_quant.is_signed))
        if bits > 8:
            self.problem(where, f"{bits}-bit codes: thresholds have at most 8 bits", value)
        if value.stream is None and value.known and self.image is None:
            return self.host_quantizer(value, code_range)
        if value.stream is None:
            if value.known:
                self.problem(where, "reads float values: no quantizer before", value)
            return self.hidden(value)
        value = self.rising(where, value.then(quantizer))
        if value.stream is None:
            return self.hidden(value)
        return self.table(where, value, code_range, bits)

    def host_quantizer(self, value: Value, code_range: tuple[int, int]) -> Value:
        """The image's: the host's work."""
        (to_codes,) = value.functions
        assert isinstance(to_codes, RangeToCodes)
        stream = self.stream(value.shape, *code_range)
        self.image = (stream, 1 / float(to_codes.gain), code_range)
        return replace(value, stream=stream, functions=())

    def table(self, where: str, value: Value, code_range: tuple[int, int], bits: int) -> Value:
        """Emit the table, and the max pools that waited for it."""
        assert value.stream is not None
        source = value.stream
        codes = partial(_staircase, value)
        table = threshold_table(codes, source.lowest, source.highest, source.shape[0], code_range)
        output = self.stream(source.shape, *code_range)
        self.add(Thresholds(where, (source,), output, table, code_range[0], bits))
        for _, pool in value.pools:
            kernel, stride, padding = (
                _pair(x) for x in (pool.kernel_size, pool.stride, pool.padding)
            )
            size = _pooled(output.shape, kernel, stride, padding)
            pooled = self.stream((output.shape[0], *size), *code_range)
            self.add(MaxPool(where, (output,), pooled, kernel, stride, padding))
            output = pooled
        return replace(value, stream=output, functions=(), pools=(), vector=value.flat)

    # conditions

    def rising(self, where: str, value: Value) -> Value:
        """The same with channels turned over in which the code falls as the integer rises.

        A convolution with negated weights of those channels gives the negated integers.
        """
        source = value.stream
        assert source is not None
        codes = partial(_staircase, value)
        signs = directions(codes, source.lowest, source.highest, source.shape[0])
        if not bool((signs < 0).any()):
            self.taken.add(source)
            return value
        layer = next(layer for layer in self.layers if layer.output is source)
        if not isinstance(layer, Convolution) or source in self.taken:
            advice = (
                "a negative norm scale that no convolution of its own stands in front of: put a "
                "convolution there, or train with positive norm scales"
            )
            return self.problem(where, advice, value)
        flip = signs.view(-1, 1, 1, 1)
        weight = layer.weight * flip + 0.0  # no negative zeros
        lowest, highest = _sum_range(weight, layer.inputs[0])
        output = self.stream(source.shape, lowest, highest)
        self.layers[self.layers.index(layer)] = replace(layer, weight=weight, output=output)
        self.taken.add(output)
        return replace(
            value, stream=output, functions=(partial(_turn_over, signs), *value.functions)
        )

    def on_a_grid(self, where: str, value: Value) -> Value:
        """A value that sums may be taken of: integers times at most one power of two."""
        if value.stream is None:
            if value.known:
                return self.problem(where, "reads float values: no quantizer before", value)
            return value
        factors = tuple(f for f in value.functions if f is not _flatten)
        if value.pools or not all(_is_power_of_two(f) for f in factors):
            return self.problem(where, "reads float values: no quantizer before", value)
        return replace(value, functions=factors, vector=value.flat)

    def unknown(self, where: str, name: str, value: Value) -> Value:
        """An operation that hardware has no layer for."""
        advice = f"{name} has no dataflow layer here: use ReLU, batch norm, additions and pooling"
        if name == "add":
            advice = "adds float values: build with profile='finn'"
        return self.problem(where, advice, value)

    def problem(self, where: str, advice: str, value: Value) -> Value:
        """Note a problem and go on, hiding what follows from it."""
        self.problems.append((where, advice))
        return replace(value, stream=None, known=False, functions=(), pools=())

    def hidden(self, value: Value) -> Value:
        """Behind a quantizer the tensor is integer again, though its integers are not known."""
        return replace(value, stream=None, known=False, functions=(), pools=())

    def stream(self, shape: tuple[int, int, int], lowest: int, highest: int) -> Stream:
        """A new stream."""
        self._count = getattr(self, "_count", -1) + 1
        return Stream(f"stream_{self._count}", shape, lowest, highest)

    def add(self, layer: Layer) -> None:
        """Append a layer, and note that its inputs are read."""
        self.taken.update(layer.inputs)
        self.layers.append(layer)


def lower(subnet: Subnet, branch_names: Sequence[str], input_shape: Sequence[int]) -> IntegerGraph:
    """The integer network that computes what ``subnet`` computes, to the bit.

    Args:
        subnet: of `brevitas_multiquant.extract_subnet`, of a network of the profile ``"finn"``.
        branch_names: what to call its branches in messages.
        input_shape: (N, C, H, W).

    Raises:
        FinnMappingError: with every reason found.
    """
    walk = Lowering()
    with torch.no_grad():
        logits = walk.subnet(subnet, branch_names, tuple(input_shape[1:]))  # type: ignore[arg-type]
        if walk.problems:
            raise FinnMappingError(subnet.bits, walk.problems)
        assert walk.image is not None and logits.stream is not None
        stream, scale, code_range = walk.image
        output_scale, bias = _affine(logits)
    host = HostSide(scale, code_range, output_scale, bias)
    return IntegerGraph(subnet.bits, stream, logits.stream, host, walk.layers)


def problems_of(
    subnet: Subnet, branch_names: Sequence[str], input_shape: Sequence[int]
) -> list[tuple[str, str]]:
    """Every (module path, what is wrong and what to do) that keeps a subnet from hardware."""
    try:
        lower(subnet, branch_names, input_shape)
    except FinnMappingError as error:
        return error.problems
    return []


def _staircase(value: Value, integers: Tensor) -> Tensor:
    """Torch's own evaluation of everything between two integers, on (n, C)."""
    x = integers if value.vector else integers[:, :, None, None]
    for function in value.functions:
        x = function(x)
    return x.reshape(integers.shape)


def _flatten(x: Tensor) -> Tensor:
    return x.flatten(1)


def _turn_over(signs: Tensor, x: Tensor) -> Tensor:
    return x * signs.view(1, -1, *(1,) * (x.dim() - 2))


def _mean_of_sum(pool: nn.Module, height: int, width: int, x: Tensor) -> Tensor:
    """What torch's pool makes of a map with this sum, of values that add up exactly."""
    values = x.reshape(*x.shape[:2], 1, 1)
    return pool(F.pad(values, (0, width - 1, 0, height - 1))).reshape(x.shape)


def _is_power_of_two(function: Any) -> bool:
    if not isinstance(function, OutputScale) or function.bias is not None:
        return False
    mantissa, _ = torch.frexp(function.scale)
    return bool(mantissa == 0.5)


def _affine(value: Value) -> tuple[float, Tensor]:
    """The one factor and the bias that make logits of the last integers."""
    scale, bias = 1.0, torch.zeros(value.shape[0])
    for function in value.functions:
        if function is _flatten:
            continue
        assert isinstance(function, OutputScale)
        scale *= float(function.scale)
        if function.bias is not None:
            bias = function.bias.flatten()
    return scale, bias


def _sum_range(weight: Tensor, source: Stream) -> tuple[int, int]:
    """Smallest and largest sum of products that any channel can give."""
    flat = weight.flatten(1).double()
    positive, negative = flat.clamp(min=0).sum(1), flat.clamp(max=0).sum(1)
    low = source.lowest * positive + source.highest * negative
    high = source.highest * positive + source.lowest * negative
    return int(low.min()), int(high.max())


def _weight_bits(layer: Any) -> int:
    return int(layer.weight_quant.bit_width())


def _is_narrow(layer: Any) -> bool:
    return bool(layer.weight_quant.is_narrow_range)


def _unsupported_convolution(conv: Any) -> str | None:
    if getattr(conv, "is_same_padded_strided", False) or isinstance(conv.padding, str):
        return "padding that depends on the image's size: use a fixed padding"
    if conv.padding_mode != "zeros" and any(conv.padding):
        return f"padding_mode={conv.padding_mode!r}: use zeros"
    if conv.groups not in (1, conv.in_channels) or (
        conv.groups > 1 and conv.in_channels != conv.out_channels
    ):
        return (
            f"{conv.groups} groups of {conv.in_channels} channels: FINN has dense and depthwise "
            "convolutions only"
        )
    return None


def _without_taps_on_padding(
    weight: Tensor,
    shape: tuple[int, int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
) -> tuple[Tensor, tuple[int, int], tuple[int, int]]:
    """The kernel of one tap where a map is one position high or wide: the others see zeros only.

    Exact, cheaper, and what lowering to matrix products asks for.
    """
    strides, paddings = list(stride), list(padding)
    for axis in (0, 1):
        tap, beside = divmod(padding[axis], dilation[axis])
        size = weight.shape[2 + axis]
        if shape[1 + axis] == 1 and size > 1 and size == 2 * tap + 1 and not beside:
            weight = weight.narrow(2 + axis, tap, 1)
            strides[axis], paddings[axis] = 1, 0
    return weight, (strides[0], strides[1]), (paddings[0], paddings[1])


def _pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else tuple(value)  # type: ignore[return-value]


def _pooled(
    shape: tuple[int, ...], kernel: tuple[int, int], stride: tuple[int, int], pad: tuple[int, int]
) -> tuple[int, int]:
    sizes = zip(shape[1:], kernel, stride, pad, strict=True)
    height, width = ((n + 2 * p - k) // s + 1 for n, k, s, p in sizes)
    return height, width
