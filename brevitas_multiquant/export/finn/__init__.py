"""To the FPGA: every bit-width as a project of the dataflow compiler FINN."""

from brevitas_multiquant.export.finn.check import Violation, check_finn
from brevitas_multiquant.export.finn.export import export_finn
from brevitas_multiquant.export.finn.fit import FitTable, fit_table
from brevitas_multiquant.export.finn.preprocessing import Preprocessing

__all__ = [
    "FitTable",
    "Preprocessing",
    "Violation",
    "check_finn",
    "export_finn",
    "fit_table",
]
