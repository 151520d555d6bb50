"""Brevitas leaves: ranges, tensor quantizers, injectors, layers."""

from brevitas_multiquant.quant.injectors import (
    OddInt3WeightPerTensorLearnedRange,
    UintActPerTensorLearnedRange,
)

__all__ = ["OddInt3WeightPerTensorLearnedRange", "UintActPerTensorLearnedRange"]
