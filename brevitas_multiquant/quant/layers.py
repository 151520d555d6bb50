"""Brevitas layers that multiply codes by codes, and the rules that make them from float layers.

A rule is registered for a layer type. It applies to subclasses that compute as the type does; one
with a forward of its own needs a rule of its own, and is refused without one, never skipped.
"""

import copy
import sys
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any
from weakref import WeakKeyDictionary

import torch
from brevitas.nn import (
    QuantConv1d,
    QuantConv2d,
    QuantConv3d,
    QuantConvTranspose1d,
    QuantConvTranspose2d,
    QuantConvTranspose3d,
    QuantLinear,
)
from torch import Tensor, nn

from brevitas_multiquant.core.grids import ODD, Grid, WeightFormat
from brevitas_multiquant.core.panel import Panel
from brevitas_multiquant.quant.code_products import CodeLayer as CodeLayer
from brevitas_multiquant.quant.code_products import weight_range as weight_range
from brevitas_multiquant.quant.geometry import (
    geometry,
)
from brevitas_multiquant.quant.injectors import WeightPerTensorLearnedRange
from brevitas_multiquant.quant.prepared import prepared

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
WEIGHTED = (*CONVOLUTIONS, *TRANSPOSED, nn.Linear)
"""Layers that are quantized wherever they stand between stem and head."""


class CodeConv2d(CodeLayer, QuantConv2d):
    """`CodeLayer` over ``brevitas.nn.QuantConv2d``."""


class CodeConv1d(CodeLayer, QuantConv1d):
    """`CodeLayer` over ``brevitas.nn.QuantConv1d``."""


class CodeConv3d(CodeLayer, QuantConv3d):
    """`CodeLayer` over ``brevitas.nn.QuantConv3d``."""


class CodeConvTranspose2d(CodeLayer, QuantConvTranspose2d):
    """`CodeLayer` over ``brevitas.nn.QuantConvTranspose2d``."""


class CodeConvTranspose1d(CodeLayer, QuantConvTranspose1d):
    """`CodeLayer` over ``brevitas.nn.QuantConvTranspose1d``."""


class CodeConvTranspose3d(CodeLayer, QuantConvTranspose3d):
    """`CodeLayer` over ``brevitas.nn.QuantConvTranspose3d``."""


class CodeLinear(CodeLayer, QuantLinear):
    """`CodeLayer` over ``brevitas.nn.QuantLinear``."""


Weights = WeightFormat | type[WeightPerTensorLearnedRange]
"""Which integers weights become: a grid, or a Brevitas injector of a quantizer of its own."""

Rule = Callable[[Any, Panel, Weights], CodeLayer]
"""Float layer, the network's state, which integers its weights become -> layer of codes."""

_RULES: dict[type | str, Rule] = {}
_FOUND: WeakKeyDictionary[type, tuple[type, Rule] | None] = WeakKeyDictionary()
"""Type -> its base that has a rule, and the rule: looked for once, since every module is asked."""

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
        _FOUND.clear()
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
    if own not in _FOUND:
        _FOUND[own] = _first_with_rule(own)
    if (found := _FOUND[own]) is None:
        return None
    base, rule = found
    same = all(getattr(own, n, None) is getattr(base, n, None) for n in _COMPUTES)
    return rule if same else None


def _first_with_rule(own: type) -> tuple[type, Rule] | None:
    for base in own.__mro__:
        for kind, rule in _RULES.items():
            if _is_kind(base, kind):
                return base, rule
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


@cache
def _injector(grid: Grid) -> Any:
    return WeightPerTensorLearnedRange.let(weight_format=grid)


def empty_layer(code_type: Callable[..., Any], layer: nn.Module, weight_format: Weights) -> Any:
    """A `CodeLayer` of the float layer's shape; its weights are still to come."""
    shape = geometry(layer) | {"bias": layer.bias is not None}
    if isinstance(weight_format, Grid):
        return prepared(code_type, **shape, weight_quant=_injector(weight_format))
    with torch.random.fork_rng(devices=[]):  # what else an injector reads is not known: made anew
        return code_type(**shape, weight_quant=weight_format)


@register_layer(nn.Conv2d)
def _conv2d(conv: nn.Conv2d, active: Panel, weight_format: Weights) -> CodeLayer:
    return finished(empty_layer(CodeConv2d, conv, weight_format), conv, active)


@register_layer(nn.Conv1d)
def _conv1d(conv: nn.Conv1d, active: Panel, weight_format: Weights) -> CodeLayer:
    return finished(empty_layer(CodeConv1d, conv, weight_format), conv, active)


@register_layer(nn.Conv3d)
def _conv3d(conv: nn.Conv3d, active: Panel, weight_format: Weights) -> CodeLayer:
    return finished(empty_layer(CodeConv3d, conv, weight_format), conv, active)


@register_layer(nn.ConvTranspose2d)
def _transposed2d(conv: nn.ConvTranspose2d, active: Panel, weight_format: Weights) -> CodeLayer:
    return finished(empty_layer(CodeConvTranspose2d, conv, weight_format), conv, active)


@register_layer(nn.ConvTranspose1d)
def _transposed1d(conv: nn.ConvTranspose1d, active: Panel, weight_format: Weights) -> CodeLayer:
    return finished(empty_layer(CodeConvTranspose1d, conv, weight_format), conv, active)


@register_layer(nn.ConvTranspose3d)
def _transposed3d(conv: nn.ConvTranspose3d, active: Panel, weight_format: Weights) -> CodeLayer:
    return finished(empty_layer(CodeConvTranspose3d, conv, weight_format), conv, active)


@register_layer(nn.Linear)
@register_layer("timm.layers.Linear")
def _linear(linear: nn.Linear, active: Panel, weight_format: Weights) -> CodeLayer:
    return finished(empty_layer(CodeLinear, linear, weight_format), linear, active)


@register_layer("timm.layers.Conv2dSame")
def _conv2d_same(conv: Any, active: Panel, weight_format: Weights) -> CodeLayer:
    quantized = empty_layer(CodeConv2d, conv, weight_format)
    quantized.is_same_padded_strided = True
    return finished(quantized, conv, active)
