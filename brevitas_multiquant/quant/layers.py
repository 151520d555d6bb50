"""Brevitas layers that multiply codes by codes, and the rules that make them from float layers.

A rule is registered for a layer type. It applies to subclasses that compute as the type does; one
with a forward of its own needs a rule of its own, and is refused without one, never skipped.
"""

import copy
import sys
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from functools import cache
from typing import Any

import torch
from brevitas.nn import QuantConv1d, QuantConv2d, QuantLinear
from torch import Tensor, nn

from brevitas_multiquant.core.clip_quantize import activation_levels
from brevitas_multiquant.core.devices import widest_float
from brevitas_multiquant.core.exact_sums import sums_are_exact
from brevitas_multiquant.core.grids import ODD, Grid, WeightFormat
from brevitas_multiquant.core.panel import Dial, Panel
from brevitas_multiquant.core.told import told_by
from brevitas_multiquant.quant.entries import Entry, float_entries
from brevitas_multiquant.quant.exact import contract_exactly, refuse_mixed_types
from brevitas_multiquant.quant.geometry import as_output_channels, geometry
from brevitas_multiquant.quant.injectors import WeightPerTensorLearnedRange
from brevitas_multiquant.quant.kept_weights import codes_kept
from brevitas_multiquant.quant.member import INPUT, WEIGHT, Member, Site
from brevitas_multiquant.quant.plain import plain_layer
from brevitas_multiquant.quant.stored_channels import channels_entry
from brevitas_multiquant.quant.stored_codes import weight_entry

WEIGHTED = (nn.Conv1d, nn.Conv2d, nn.Linear)
"""Layers that are quantized wherever they stand between stem and head."""


class CodeLayer(Member):
    """Mixed into a Brevitas layer: codes in, ``scale * (codes * codes) + bias`` out.

    While training, the scale is folded into the weights, which costs no pass over the output. In
    evaluation the codes are multiplied as they are: integers below 2**24 (`is_exact`) add up in
    fp32 exactly, in any order, so that every executor of the exported graph gets the same bits.
    Autocast does not change that (`quant.exact`).

    Attributes:
        input_dial: of the site that the layer reads: it shows the bits of both factors.
    """

    active: Panel
    input_dial: Dial | Panel
    weight_function: Callable[[nn.Module], Tensor] | None
    weight: Tensor
    bias: Tensor | None
    weight_quant: Any

    def reset_parameters(self) -> None:
        """Leave them empty: they come from the float layer."""

    def effective_weight(self) -> Tensor:
        """The weight that the float layer would use: standardised where its author does so."""
        return self.weight if self.weight_function is None else self.weight_function(self)

    def quant_weight(self, quant_input: Any = None, **_: Any) -> Any:
        """Codes of the effective weight, for the layer and for Brevitas's tools."""
        return self.weight_quant(self.effective_weight())

    @property
    def weight_format(self) -> WeightFormat:
        """Which integers the weight codes are, at the bits at which it runs."""
        return self.weight_quant.tensor_quant.weight_format  # type: ignore[no-any-return]

    @property
    def channel_bits(self) -> Sequence[int] | None:
        """Bits of each output channel, where they have some of their own."""
        return self.weight_quant.tensor_quant.grid_impl.channel_bits  # type: ignore[no-any-return]

    @property
    def weight_grids(self) -> Sequence[Grid]:
        """All grids at which its weights may run."""
        return self.weight_quant.tensor_quant.grid_impl.all_grids  # type: ignore[no-any-return]

    @property
    def output_scale(self) -> float | Tensor:
        """Turns a product of codes into the product of values.

        1 / (divisor (2**b - 1)) for the paper's values; times the factor that the weights' range
        gives theirs. Where output channels have bits of their own, one for each: (C, 1, ...) as in
        the weights.
        """
        divisor: float | Tensor = self.weight_quant.tensor_quant.divisor
        factor: float | Tensor = weight_range(self).factor(self.effective_weight)
        told = told_by(self.input_dial)
        if told is not None:  # in fp64, as Python computes it, if the device has it
            return factor / (divisor * told.levels.to(widest_float(told.levels.device)))
        return factor / (divisor * activation_levels(self.input_dial.bits))

    @property
    def scale_of_outputs(self) -> float | Tensor:
        """`output_scale`, in a shape that broadcasts to that of the output."""
        scale = self.output_scale
        by_channel = isinstance(scale, Tensor) and scale.dim()
        return as_output_channels(self, scale.flatten()) if by_channel else scale  # type: ignore[union-attr]

    @property
    def is_exact(self) -> bool:
        """Whether fp32 holds every sum of products of codes, at the bits that its input has."""
        largest = activation_levels(self.input_dial.bits)
        return sums_are_exact(self.weight[0].numel(), self.weight_format.magnitude, largest)

    def inner_forward_impl(self, x: Tensor, weight_codes: Tensor, bias: Tensor | None) -> Tensor:
        """The layer's own operation on codes, or on floats while quantizers are off."""
        contract = super().inner_forward_impl  # type: ignore[misc]
        if not self.active.quantized:
            return contract(x, self.effective_weight(), bias)
        if self.weight_quant.tensor_quant.are_values:  # while bits are learned
            return contract(x, weight_codes, bias)
        if self.training:
            refuse_mixed_types(x, weight_codes)
            scale = self.output_scale
            weight = weight_codes * scale
            if not self.weight_quant.tensor_quant.are_whole:
                return contract(x, weight, bias)
            compiling = torch.compiler.is_compiling()  # then the grid that runs is not known
            grid = self.weight_grids[-1] if compiling else self.weight_format
            with codes_kept(x, weight, weight_codes, scale, grid.magnitude):
                return contract(x, weight, bias)
        y = contract_exactly(contract, x, weight_codes).mul_(self.scale_of_outputs)
        y = y if bias is None else y.add_(as_output_channels(self, bias))
        return y.to(weight_codes.dtype)

    def stored(self, name: str) -> Iterable[Entry]:
        """Weights; a gain is in them, and the range is the quantizer's."""
        learned = weight_range(self)
        make = weight_entry if self.channel_bits is None else channels_entry
        yield make(self, name, learned)
        yield from learned.of_weights(name, self.effective_weight)
        yield from float_entries(self, name, skip=("weight", "gain"))

    def frozen(self, bits: int, name: str) -> nn.Module:
        """A stock layer of the codes, and their scale behind it."""
        form, codes = self.weight_format, self.quant_weight()
        plain = plain_layer(
            self,
            codes,
            self.scale_of_outputs,
            form.integer_bits,
            form.magnitude,
            narrow_range=form.is_narrow,
        )
        pruned = self.weight_quant.tensor_quant.pruned
        if pruned is not None:
            plain.pruned_channels = pruned
        return plain

    def sites(self) -> Mapping[str, Site]:
        """Its codes, and those that it reads."""
        dial, own = self.input_dial, self.weight_quant.tensor_quant.mean_bits
        weights = Site(dial.weight_bits, self.weight.numel(), assigned=dial.assigned_weights)
        if own is not None:  # of channels with bits of their own
            weights = Site(own, self.weight.numel())
        return {WEIGHT: weights, INPUT: Site(dial.activation_bits, assigned=dial.assigned)}

    def look_at(self, dial: Dial | Panel) -> None:
        """Read a site: its dial shows the bits of the layer's weights and of what it reads."""
        super().look_at(dial)
        self.weight_quant.tensor_quant.grid_impl.look_at(dial)


class CodeConv2d(CodeLayer, QuantConv2d):
    """`CodeLayer` over ``brevitas.nn.QuantConv2d``."""


class CodeConv1d(CodeLayer, QuantConv1d):
    """`CodeLayer` over ``brevitas.nn.QuantConv1d``."""


class CodeLinear(CodeLayer, QuantLinear):
    """`CodeLayer` over ``brevitas.nn.QuantLinear``."""


Weights = WeightFormat | type[WeightPerTensorLearnedRange]
"""Which integers weights become: a grid, or a Brevitas injector of a quantizer of its own."""

Rule = Callable[[Any, Panel, Weights], CodeLayer]
"""Float layer, the network's state, which integers its weights become -> layer of codes."""

_RULES: dict[type | str, Rule] = {}

_COMPUTES = {"forward", "_conv_forward", "weight", "bias", "__call__", "__getattr__"}
"""What makes a subclass compute something else than its base, where it overrides it."""


def register_layer(kind: type | str) -> Callable[[Rule], Rule]:
    """Register how a float layer becomes a `CodeLayer`.

    A rule applies to the type itself and to subclasses that override neither its forward nor its
    weight. A later rule takes the place of an earlier one for the same kind.

    Args:
        kind: the layer's type. Or its place, ``"package.module.Type"``, for a library that may
            not be installed: it is not imported. Or a bare class name, for whatever class is
            called so.

    Example:
        >>> class Doubled(nn.Linear):
        ...     def forward(self, x):
        ...         return super().forward(2 * x)
        >>> can_quantize(Doubled(4, 2))
        False
        >>> @register_layer(Doubled)
        ... def _doubled(layer, active, weight_format):
        ...     plain = nn.Linear(layer.in_features, layer.out_features)
        ...     plain.weight, plain.bias = nn.Parameter(2 * layer.weight), layer.bias
        ...     return code_layer(plain, active, weight_format)
        >>> can_quantize(Doubled(4, 2))
        True
    """

    def register(rule: Rule) -> Rule:
        _RULES[kind] = rule
        return rule

    return register


def can_quantize(layer: nn.Module) -> bool:
    """Whether a rule knows how the layer computes."""
    return rule_of(layer) is not None


def is_plain(layer: nn.Module, kind: type[nn.Module] | str) -> bool:
    """Whether a layer computes as a layer type of torch does, or as one that has a rule by place.

    Example:
        >>> is_plain(nn.Conv2d(3, 4, 1), nn.Conv2d), is_plain(nn.Linear(3, 4), nn.Conv2d)
        (True, False)
    """
    return rule_of(layer) is _RULES[kind]


def rule_of(layer: nn.Module) -> Rule | None:
    """The rule of the layer's type, or of the base that it computes as."""
    if not _COMPUTES.isdisjoint(vars(layer)):  # this one layer hides what its type says
        return None
    own = type(layer)
    for base in own.__mro__:
        rule = next((rule for kind, rule in _RULES.items() if _is_kind(base, kind)), None)
        if rule is not None:
            same = all(getattr(own, n, None) is getattr(base, n, None) for n in _COMPUTES)
            return rule if same else None
    return None


def _is_kind(layer_type: type, kind: type | str) -> bool:
    if not isinstance(kind, str):
        return layer_type is kind
    module, _, name = kind.rpartition(".")
    if module:
        return getattr(sys.modules.get(module), name, None) is layer_type
    return layer_type.__name__ == name


def code_layer(layer: nn.Module, active: Panel, weight_format: Weights = ODD) -> CodeLayer:
    """The float layer as a `CodeLayer` that holds the same parameters; the layer is not changed."""
    rule = rule_of(layer)
    assert rule is not None, "asked for after can_quantize"
    return rule(layer, active, weight_format)


def finished(
    quantized: Any,
    layer: nn.Module,
    active: Panel,
    weight_function: Callable[[nn.Module], Tensor] | None = None,
) -> CodeLayer:
    """An `empty_layer` with the parameters of the float layer.

    Args:
        quantized: the empty layer; changed in place.
        layer: the float layer.
        active: the network's state.
        weight_function: layer -> the weight that it uses, where that is not its parameter.
    """
    for name, parameter in layer.named_parameters(recurse=False):
        quantized.register_parameter(name, copy.deepcopy(parameter))
    quantized.active = active
    quantized.look_at(active)
    quantized.weight_function = weight_function
    quantized.weight_quant.skip_create_quant_tensor = True
    quantized.train(layer.training)
    weight_range(quantized).set_from(quantized.effective_weight())
    device = quantized.weight.device
    made_there = all(tensor.device == device for tensor in _tensors(quantized))
    return quantized if made_there else quantized.to(device)


def _tensors(module: nn.Module) -> Iterator[Tensor]:
    yield from module.parameters()
    yield from module.buffers()


def weight_range(layer: CodeLayer) -> Any:
    """What places a layer's weights between -1 and 1: a trainable range, in most methods."""
    return layer.weight_quant.tensor_quant.range_impl


@cache
def _weight_quantizer(weights: Hashable) -> Any:
    is_grid = isinstance(weights, Grid)
    return WeightPerTensorLearnedRange.let(weight_format=weights) if is_grid else weights


def empty_layer(code_type: Callable[..., Any], layer: nn.Module, weight_format: Weights) -> Any:
    """A `CodeLayer` of the float layer's shape; its weights are still to come."""
    with torch.random.fork_rng(devices=[]):
        return code_type(
            **geometry(layer),
            bias=layer.bias is not None,
            weight_quant=_weight_quantizer(weight_format),  # type: ignore[arg-type]
        )


@register_layer(nn.Conv2d)
def _conv2d(conv: nn.Conv2d, active: Panel, weight_format: Weights) -> CodeLayer:
    return finished(empty_layer(CodeConv2d, conv, weight_format), conv, active)


@register_layer(nn.Conv1d)
def _conv1d(conv: nn.Conv1d, active: Panel, weight_format: Weights) -> CodeLayer:
    return finished(empty_layer(CodeConv1d, conv, weight_format), conv, active)


@register_layer(nn.Linear)
@register_layer("timm.layers.Linear")
def _linear(linear: nn.Linear, active: Panel, weight_format: Weights) -> CodeLayer:
    return finished(empty_layer(CodeLinear, linear, weight_format), linear, active)


@register_layer("timm.layers.Conv2dSame")
def _conv2d_same(conv: Any, active: Panel, weight_format: Weights) -> CodeLayer:
    quantized = empty_layer(CodeConv2d, conv, weight_format)
    quantized.is_same_padded_strided = True
    return finished(quantized, conv, active)
