"""A budget in, bit-widths out."""

from brevitas_multiquant.allocation.allocate import allocate
from brevitas_multiquant.allocation.allocation import Allocation
from brevitas_multiquant.allocation.bit_search import BitSearch, Settled
from brevitas_multiquant.allocation.budget import Budget
from brevitas_multiquant.allocation.cost_table import CostTable
from brevitas_multiquant.allocation.gate_search import GateSearch
from brevitas_multiquant.allocation.policies import POLICIES
from brevitas_multiquant.allocation.regularisers import L1, Controller
from brevitas_multiquant.allocation.rounding import round_to_budget
from brevitas_multiquant.allocation.sampled_search import SampledSearch
from brevitas_multiquant.allocation.strategies.catalogue import STRATEGIES, Strategy

__all__ = [
    "L1",
    "POLICIES",
    "STRATEGIES",
    "Allocation",
    "BitSearch",
    "Budget",
    "Controller",
    "CostTable",
    "GateSearch",
    "SampledSearch",
    "Settled",
    "Strategy",
    "allocate",
    "round_to_budget",
]
