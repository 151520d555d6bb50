"""What a network costs: multiply-accumulates, bit operations, bytes."""

from brevitas_multiquant.cost.table import BitWidthCost, Cost, cost, layer_macs

__all__ = ["BitWidthCost", "Cost", "cost", "layer_macs"]
