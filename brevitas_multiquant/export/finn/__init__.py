"""To the FPGA: every bit-width as a project of the dataflow compiler FINN."""

from brevitas_multiquant.core.preprocessing import Preprocessing
from brevitas_multiquant.export.finn.check import Violation, check_finn
from brevitas_multiquant.export.finn.export import export_finn
from brevitas_multiquant.export.finn.fit import FitTable, fit_table

__all__ = [
    "FitTable",
    "Preprocessing",
    "Violation",
    "check_finn",
    "export_finn",
    "fit_table",
]
