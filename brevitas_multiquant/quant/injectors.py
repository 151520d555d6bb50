"""The quantizers as Brevitas injectors, for ``weight_quant=`` and ``act_quant=`` of its layers."""

from brevitas.inject import ExtendedInjector, value
from brevitas.inject.enum import BitWidthImplType, FloatToIntImplType, QuantType
from brevitas.quant.solver.act import ActQuantSolver
from brevitas.quant.solver.weight import WeightQuantSolver

from brevitas_multiquant.core.grids import ODD, WEIGHT_FORMATS, Grid
from brevitas_multiquant.quant.proxies import (
    LearnedRangeActQuantProxy,
    LearnedRangeWeightQuantProxy,
)
from brevitas_multiquant.quant.ranges import ActivationRange, WeightRange
from brevitas_multiquant.quant.tensor_quant import ActivationCodes, AtRunTime, Fixed, WeightCodes


class _LearnedRangeCodes(ExtendedInjector):
    quant_type = QuantType.INT
    float_to_int_impl_type = FloatToIntImplType.ROUND
    bit_width_impl_type = BitWidthImplType.CONST


class WeightPerTensorLearnedRange(_LearnedRangeCodes, WeightQuantSolver):
    """Weights with one trainable range per tensor, as the integers of the grid ``weight_format``.

    ``let(scaling_per_output_channel=True)`` gives each output channel a range of its own.

    Example:
        >>> from brevitas.nn import QuantConv2d
        >>> from brevitas_multiquant.core.grids import symmetric
        >>> per_channel = WeightPerTensorLearnedRange.let(
        ...     weight_format=symmetric(4), scaling_per_output_channel=True
        ... )
        >>> conv = QuantConv2d(3, 8, 3, weight_quant=per_channel)
        >>> conv.quant_weight().value.abs().max() <= 7
        tensor(True)
        >>> conv.weight_quant.tensor_quant.range_impl.lower.shape
        torch.Size([8, 1, 1, 1])
    """

    proxy_class = LearnedRangeWeightQuantProxy
    tensor_quant = WeightCodes
    range_impl = WeightRange
    grid_impl = Fixed
    weight_format = ODD
    signed = True
    scaling_per_output_channel = False

    @value
    def bit_width(weight_format: Grid) -> int:  # type: ignore[misc]  # noqa: N805
        """Bits of the signed integers."""
        return weight_format.integer_bits

    @value
    def narrow_range(weight_format: Grid) -> bool:  # type: ignore[misc]  # noqa: N805
        """Whether the most negative integer of that many bits is left out."""
        return weight_format.is_narrow


class WeightAtRunTimeLearnedRange(WeightPerTensorLearnedRange):
    """Weights with one trainable range, and a bit-width that is chosen while the network runs.

    ``let(family=..., candidate_bits=...)`` says which grids; all of them share the range, and one
    compiled graph serves them all.

    Example:
        >>> from brevitas.nn import QuantConv2d
        >>> conv = QuantConv2d(3, 8, 3, weight_quant=WeightAtRunTimeLearnedRange)
        >>> conv.weight_quant.tensor_quant.grid_impl.switch(3)
        >>> conv.quant_weight().value.abs().max() <= 7
        tensor(True)
    """

    grid_impl = AtRunTime  # type: ignore[assignment]
    family = "odd"
    candidate_bits = tuple(range(2, 9))

    @value
    def bit_width_impl(grid_impl: AtRunTime) -> AtRunTime:  # type: ignore[misc]  # noqa: N805
        """Who knows the bits of the integers."""
        return grid_impl

    @value
    def weight_format(grid_impl: AtRunTime) -> Grid:  # type: ignore[misc]  # noqa: N805
        """The grid of the most bits."""
        return grid_impl.finest


class OddInt3WeightPerTensorLearnedRange(WeightPerTensorLearnedRange):
    """2-bit mid-rise weights with one trainable range per tensor (paper, eqs. 1 to 3).

    Four levels, as the odd codes -3, -1, 1, 3 of a narrow signed 3-bit integer.

    Example:
        >>> from brevitas.nn import QuantConv2d
        >>> conv = QuantConv2d(3, 8, 3, weight_quant=OddInt3WeightPerTensorLearnedRange)
        >>> sorted(set(conv.quant_weight().value.flatten().tolist()) - {-3.0, 3.0})
        [-1.0, 1.0]
    """

    weight_format = WEIGHT_FORMATS["odd"]


class Int2WeightPerTensorLearnedRange(WeightPerTensorLearnedRange):
    """Weights -2, -1, 0, 1 with one trainable range per tensor: a signed 2-bit integer.

    Example:
        >>> from brevitas.nn import QuantConv2d
        >>> conv = QuantConv2d(3, 8, 3, weight_quant=Int2WeightPerTensorLearnedRange)
        >>> conv.quant_weight().value.abs().max() <= 2
        tensor(True)
    """

    weight_format = WEIGHT_FORMATS["int2"]


class TernaryWeightPerTensorLearnedRange(WeightPerTensorLearnedRange):
    """Weights -1, 0, 1 with one trainable range per tensor: a narrow signed 2-bit integer.

    Example:
        >>> from brevitas.nn import QuantConv2d
        >>> conv = QuantConv2d(3, 8, 3, weight_quant=TernaryWeightPerTensorLearnedRange)
        >>> conv.quant_weight().value.unique()
        tensor([-1.,  0.,  1.], grad_fn=<Unique2Backward0>)
    """

    weight_format = WEIGHT_FORMATS["ternary"]


class UintActPerTensorLearnedRange(_LearnedRangeCodes, ActQuantSolver):
    """Unsigned activations of any bit-width with one trainable range (paper, eqs. 1 to 3).

    Example:
        >>> import torch
        >>> from brevitas.nn import QuantIdentity
        >>> quant = QuantIdentity(act_quant=UintActPerTensorLearnedRange, bit_width=4)
        >>> quant(torch.rand(100)).max() <= 15
        tensor(True)
    """

    proxy_class = LearnedRangeActQuantProxy
    tensor_quant = ActivationCodes
    range_impl = ActivationRange
    bit_width = 8
    signed = False
    narrow_range = False
