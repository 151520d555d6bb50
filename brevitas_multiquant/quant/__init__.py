"""Brevitas leaves: ranges, tensor quantizers, injectors, layers."""

import brevitas_multiquant.quant.standardised  # noqa: F401  # its rules register themselves
from brevitas_multiquant.quant.injectors import (
    Int2WeightPerTensorLearnedRange,
    OddInt3WeightPerTensorLearnedRange,
    TernaryWeightPerTensorLearnedRange,
    UintActPerTensorLearnedRange,
    WeightAtRunTimeLearnedRange,
    WeightPerTensorLearnedRange,
)

__all__ = [
    "Int2WeightPerTensorLearnedRange",
    "OddInt3WeightPerTensorLearnedRange",
    "TernaryWeightPerTensorLearnedRange",
    "UintActPerTensorLearnedRange",
    "WeightAtRunTimeLearnedRange",
    "WeightPerTensorLearnedRange",
]
