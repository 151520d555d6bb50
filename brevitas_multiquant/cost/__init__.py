"""What a network costs: multiply-accumulates, bit operations, bytes."""

from brevitas_multiquant.cost.inventory import Inventory, Layer, inventory_of, layer_macs
from brevitas_multiquant.cost.models import CONVENTIONS, bitops, total_bitops, weight_bytes
from brevitas_multiquant.cost.table import BitWidthCost, Cost, cost

__all__ = [
    "CONVENTIONS",
    "BitWidthCost",
    "Cost",
    "Inventory",
    "Layer",
    "bitops",
    "cost",
    "inventory_of",
    "layer_macs",
    "total_bitops",
    "weight_bytes",
]
