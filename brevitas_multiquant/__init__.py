"""One convolutional network that runs at every bit-width, from PyTorch to the FPGA."""

# ruff: noqa: E402 - the versions are checked before anything of theirs is imported
from brevitas_multiquant.versions import check_versions

check_versions()

from brevitas_multiquant.calibrate import calibrate
from brevitas_multiquant.checkpoint import load_packed, save_packed
from brevitas_multiquant.config import MultiQuantConfig
from brevitas_multiquant.cost import cost
from brevitas_multiquant.distill import InPlaceDistillation
from brevitas_multiquant.errors import MultiQuantError
from brevitas_multiquant.nn import MultiQuantNet
from brevitas_multiquant.norm_statistics import reestimate_norms
from brevitas_multiquant.rewrite import multiquantize
from brevitas_multiquant.source import ModelSource
from brevitas_multiquant.subnet import extract_subnet
from brevitas_multiquant.version import __version__

__all__ = [
    "InPlaceDistillation",
    "ModelSource",
    "MultiQuantConfig",
    "MultiQuantError",
    "MultiQuantNet",
    "__version__",
    "calibrate",
    "cost",
    "extract_subnet",
    "load_packed",
    "multiquantize",
    "reestimate_norms",
    "save_packed",
]
