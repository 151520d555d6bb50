"""One convolutional network that runs at every bit-width, from PyTorch to the FPGA."""

# ruff: noqa: E402 - the versions are checked before anything of theirs is imported
from brevitas_multiquant.core.supported_versions import check_versions

check_versions()

from brevitas_multiquant.allocation.allocate import allocate
from brevitas_multiquant.allocation.allocation import Allocation
from brevitas_multiquant.allocation.budget import Budget
from brevitas_multiquant.core.config import MultiQuantConfig
from brevitas_multiquant.core.float_model import ModelSource
from brevitas_multiquant.core.moved import keep_old_names
from brevitas_multiquant.core.precision import Assignment, Precision
from brevitas_multiquant.cost.table import cost
from brevitas_multiquant.errors import MultiQuantError
from brevitas_multiquant.export.finn import layer_costs as _layer_costs  # noqa: F401 - for `cost`
from brevitas_multiquant.methods.convert import multiquantize
from brevitas_multiquant.methods.objectives import objective_of
from brevitas_multiquant.nn import MultiQuantNet
from brevitas_multiquant.nn.subnet import extract_subnet
from brevitas_multiquant.storage import hub as _hub  # noqa: F401 - gives networks its methods
from brevitas_multiquant.storage.packed_net import load_packed, save_packed
from brevitas_multiquant.training.calibrate import calibrate
from brevitas_multiquant.training.norm_statistics import assigned_norms, reestimate_norms
from brevitas_multiquant.training.objective import InPlaceDistillation
from brevitas_multiquant.version import __version__

keep_old_names()

__all__ = [
    "Allocation",
    "Assignment",
    "Budget",
    "InPlaceDistillation",
    "ModelSource",
    "MultiQuantConfig",
    "MultiQuantError",
    "MultiQuantNet",
    "Precision",
    "__version__",
    "allocate",
    "assigned_norms",
    "calibrate",
    "cost",
    "extract_subnet",
    "load_packed",
    "multiquantize",
    "objective_of",
    "reestimate_norms",
    "save_packed",
]
