"""The quantizers as Brevitas injectors, for ``weight_quant=`` and ``act_quant=`` of its layers."""

from brevitas.inject import ExtendedInjector
from brevitas.inject.enum import BitWidthImplType, FloatToIntImplType, QuantType
from brevitas.quant.solver.act import ActQuantSolver
from brevitas.quant.solver.weight import WeightQuantSolver

from brevitas_multiquant.quant.proxies import (
    LearnedRangeActQuantProxy,
    LearnedRangeWeightQuantProxy,
)
from brevitas_multiquant.quant.ranges import ActivationRange, WeightRange
from brevitas_multiquant.quant.tensor_quant import ActivationCodes, WeightCodes


class _LearnedRangeCodes(ExtendedInjector):
    quant_type = QuantType.INT
    float_to_int_impl_type = FloatToIntImplType.ROUND
    bit_width_impl_type = BitWidthImplType.CONST


class OddInt3WeightPerTensorLearnedRange(_LearnedRangeCodes, WeightQuantSolver):
    """2-bit mid-rise weights with one trainable range a tensor (paper, eqs. 1 to 3).

    Four levels, as the odd codes -3, -1, 1, 3 of a narrow signed 3-bit integer.

    Example:
        >>> from brevitas.nn import QuantConv2d
        >>> conv = QuantConv2d(3, 8, 3, weight_quant=OddInt3WeightPerTensorLearnedRange)
        >>> sorted(set(conv.quant_weight().value.flatten().tolist()) - {-3.0, 3.0})
        [-1.0, 1.0]
    """

    proxy_class = LearnedRangeWeightQuantProxy
    tensor_quant = WeightCodes
    range_impl = WeightRange
    bit_width = 3
    signed = True
    narrow_range = True


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
