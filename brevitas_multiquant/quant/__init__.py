"""Brevitas leaves: ranges, tensor quantizers, injectors, layers."""

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
